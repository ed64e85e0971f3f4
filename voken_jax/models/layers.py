"""Layers shared by the networks: convolution with torch's default initialisation, group norm, resampling.

Shape legend: B batch, H/W height and width, C channels, S any spatial axes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

Padding = str | Sequence[tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Policy:
    """Number formats of a network, groups of its group norms, and whether the backward pass recomputes blocks."""

    param_dtype: DTypeLike = jnp.float32
    compute_dtype: DTypeLike = jnp.float32
    remat: bool = False
    norm_groups: int = 32

    def with_groups(self, norm_groups: int) -> Policy:
        """Return a copy with another number of group-norm groups."""
        return dataclasses.replace(self, norm_groups=norm_groups)


def at_least_float32(x: Array) -> Array:
    """Widen half precision; float32 and float64 stay."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def swish(x: Array) -> Array:
    """Sigmoid-weighted: x * sigmoid(x)."""
    return jax.nn.silu(x)


def uniform_by_fan_in(fan_in: int) -> nnx.Initializer:
    """Uniform in +-1/sqrt(fan_in): torch's default for weights and biases of convolutions and linear layers."""
    bound = 1.0 / math.sqrt(fan_in)

    def init(key: PRNGKeyArray, shape: Sequence[int], dtype: DTypeLike = jnp.float32, **_: Any) -> Array:
        return jax.random.uniform(key, tuple(shape), dtype, -bound, bound)

    return init


def conv(
    in_channels: int,
    out_channels: int,
    size: int,
    *,
    policy: Policy,
    rngs: nnx.Rngs,
    stride: int = 1,
    bias: bool = True,
    padding: Padding | None = None,
    kernel_init: nnx.Initializer | None = None,
) -> nnx.Conv:
    """2-D convolution over (B, H, W, C); `padding` defaults to size // 2 on every side."""
    init = uniform_by_fan_in(in_channels * size * size)
    return nnx.Conv(
        in_channels,
        out_channels,
        (size, size),
        strides=stride,
        padding=[(size // 2, size // 2)] * 2 if padding is None else padding,
        use_bias=bias,
        dtype=policy.compute_dtype,
        param_dtype=policy.param_dtype,
        kernel_init=kernel_init or init,
        bias_init=init,
        rngs=rngs,
    )


def linear(in_features: int, out_features: int, *, policy: Policy, rngs: nnx.Rngs) -> nnx.Linear:
    """Dense layer with torch's default initialisation."""
    init = uniform_by_fan_in(in_features)
    return nnx.Linear(
        in_features,
        out_features,
        dtype=policy.compute_dtype,
        param_dtype=policy.param_dtype,
        kernel_init=init,
        bias_init=init,
        rngs=rngs,
    )


def group_normalize(x: Float[Array, "B *S C"], groups: int, epsilon: float) -> Float[Array, "B *S C"]:
    """Normalise each group of channels over space; statistics in float32 at least, result in that precision.

    Sums run over space first and over the channels of a group last. On a CPU this order is vectorised, takes two thirds
    of the time of both at once, and rounds thirty times less in large images.
    """
    batch, *_, channels = x.shape
    positions = at_least_float32(x).reshape(batch, -1, channels)

    def mean_of_group(values: Float[Array, "B N C"]) -> Float[Array, "B 1 C"]:
        means = values.mean(axis=1).reshape(batch, groups, channels // groups).mean(axis=2)
        return jnp.repeat(means, channels // groups, axis=1)[:, None]

    centred = positions - mean_of_group(positions)
    variance = mean_of_group(jnp.square(centred))
    return (centred * jax.lax.rsqrt(variance + epsilon)).reshape(x.shape)


class GroupNorm(nnx.Module):
    """Group norm with scale and bias over (B, *S, C); `policy.norm_groups` groups, epsilon 1e-6 by default."""

    def __init__(self, channels: int, *, policy: Policy, epsilon: float = 1e-6):
        self.scale = nnx.Param(jnp.ones((channels,), policy.param_dtype))
        self.bias = nnx.Param(jnp.zeros((channels,), policy.param_dtype))
        self.groups, self.epsilon, self.dtype = policy.norm_groups, epsilon, policy.compute_dtype

    def __call__(self, x: Float[Array, "B *S C"]) -> Float[Array, "B *S C"]:
        """Same shape, in the compute dtype."""
        normal = group_normalize(x, self.groups, self.epsilon)
        return (normal * self.scale[...] + self.bias[...]).astype(self.dtype)


class Activation(nnx.Module):
    """Leaky ReLU as a slot of a sequence, so that indices match the published names."""

    def __init__(self, slope: float):
        self.slope = slope

    def __call__(self, x: Array) -> Array:
        """Elementwise."""
        return jax.nn.leaky_relu(x, self.slope)


def depth_to_space(x: Float[Array, "B *S kC"], factor: tuple[int, ...] = (2, 2)) -> Float[Array, "B *kS C"]:
    """Channels (offset along each axis, C) to positions, `factor` the enlargement of each axis in S.

    Over images: out[2h+i, 2w+j, c] = in[h, w, (2i + j)C + c].
    """
    batch, *sides, channels = x.shape
    axes = len(sides)
    parts = x.reshape(batch, *sides, *factor, channels // math.prod(factor))
    order = [1 + axis + part * axes for axis in range(axes) for part in (0, 1)]
    large = [side * times for side, times in zip(sides, factor, strict=True)]
    return parts.transpose(0, *order, 2 * axes + 1).reshape(batch, *large, parts.shape[-1])


def upsample_nearest(x: Float[Array, "B H W C"]) -> Float[Array, "B 2H 2W C"]:
    """Every pixel twice along both sides."""
    batch, height, width, channels = x.shape
    wide = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
    return wide.reshape(batch, 2 * height, 2 * width, channels)


def dropout(x: Array, rate: float, key: PRNGKeyArray | None) -> Array:
    """Zero entries with probability `rate` and rescale the rest; the identity without a key."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)


def subkey(key: PRNGKeyArray | None, index: int) -> PRNGKeyArray | None:
    """The `index`-th key below `key`, or None where there is none."""
    return None if key is None else jax.random.fold_in(key, index)


def checkpointed(function: Any, enabled: bool) -> Any:
    """`function(module, ...)` whose activations are recomputed in the backward pass when enabled."""
    return nnx.remat(function) if enabled else function
