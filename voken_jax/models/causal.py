"""Causal 3-D convolution, by which Open-MAGVIT2's network sees videos: no frame depends on a later one.

Reference: Yu et al., MAGVIT-v2 (2023). Shape legend: B batch, T frames, H/W height and width, C/D channels.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from voken_jax.models.layers import Policy, uniform_by_fan_in


class CausalConv(nnx.Module):
    """3-D convolution with zeros around: size // 2 along height and width, size - 1 before the first frame only."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: int,
        *,
        policy: Policy,
        rngs: nnx.Rngs,
        stride: tuple[int, ...] = (1, 1, 1),
        bias: bool = True,
    ):
        init = uniform_by_fan_in(in_channels * size**3)
        self.conv_1 = nnx.Conv(
            in_channels,
            out_channels,
            (size, size, size),
            strides=stride,
            padding=[(size - 1, 0), (size // 2, size // 2), (size // 2, size // 2)],
            use_bias=bias,
            dtype=policy.compute_dtype,
            param_dtype=policy.param_dtype,
            kernel_init=init,
            bias_init=init,
            rngs=rngs,
        )

    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B t h w D"]:
        """Every `stride`-th position, the first one included."""
        return self.conv_1(x)


def drop_second_frame(x: Float[Array, "B T H W C"]) -> Float[Array, "B t H W C"]:
    """Frames 0, 2, 3, ...: after a doubling of time the first latent frame stands for one frame, not for two."""
    first, rest = x[:, :1], x[:, 2:]
    return jnp.concatenate([first, rest], axis=1)
