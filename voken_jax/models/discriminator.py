"""Discriminators: the patch discriminator with batch norm, and the blur discriminator with group norm.

References: Isola et al., pix2pix (2017); Yu et al., MAGVIT-v2 (2023). Parameter names are slot numbers of the published
sequences, so slots without parameters are modules too.
Shape legend: B batch, H/W pixels, S pixels of an image (H W) or a clip (T H W), s patches, C channels.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from voken_common.config.schema.adversarial import BlurConfig, DiscriminatorConfig, PatchGANConfig
from voken_common.config.schema.video import PatchGAN3DConfig
from voken_jax.models.layers import Activation, GroupNorm, Policy, at_least_float32, conv, uniform_by_fan_in


class BatchNorm(nnx.Module):
    """Batch norm as torch computes it: the running variance is the unbiased one.

    In training mode every call normalises with its own statistics and moves the running ones, by `momentum` towards
    the new value. Statistics are over all positions that the traced program sees: the global batch under `jit`, one
    device's batch inside `shard_map`.
    """

    def __init__(self, channels: int, *, policy: Policy, rngs: nnx.Rngs, momentum: float = 0.1, epsilon: float = 1e-5):
        noise = jax.random.normal(rngs.params(), (channels,), policy.param_dtype)
        self.scale = nnx.Param(1.0 + 0.02 * noise)
        self.bias = nnx.Param(jnp.zeros((channels,), policy.param_dtype))
        self.running_mean = nnx.BatchStat(jnp.zeros((channels,), policy.param_dtype))
        self.running_var = nnx.BatchStat(jnp.ones((channels,), policy.param_dtype))
        self.num_batches_tracked = nnx.BatchStat(jnp.zeros((), jnp.int32))
        self.momentum, self.epsilon, self.dtype = momentum, epsilon, policy.compute_dtype

    def __call__(self, x: Float[Array, "B *S C"], train: bool) -> Float[Array, "B *S C"]:
        """Same shape, in the compute dtype."""
        wide = at_least_float32(x)
        if train:
            positions = tuple(range(x.ndim - 1))
            mean = wide.mean(axis=positions)
            variance = jnp.square(wide - mean).mean(axis=positions)
            self._track(mean, variance, x.size // x.shape[-1])
        else:
            mean, variance = self.running_mean[...], self.running_var[...]
        normal = (wide - mean) * jax.lax.rsqrt(variance + self.epsilon)
        return (normal * self.scale[...] + self.bias[...]).astype(self.dtype)

    def _track(self, mean: Float[Array, " C"], variance: Float[Array, " C"], count: int) -> None:
        unbiased = variance * (count / max(count - 1, 1))
        for running, new in ((self.running_mean, mean), (self.running_var, unbiased)):
            moved = (1.0 - self.momentum) * running[...] + self.momentum * jax.lax.stop_gradient(new)
            running[...] = moved.astype(running[...].dtype)
        self.num_batches_tracked[...] = self.num_batches_tracked[...] + 1


class PatchGAN(nnx.Module):
    """Convolutions with batch norm and leaky ReLU 0.2; one logit per patch. 4x4 over images, 3x3x3 over clips."""

    def __init__(
        self, config: PatchGANConfig | PatchGAN3DConfig, image_channels: int, *, policy: Policy, rngs: nnx.Rngs
    ):
        kernel = (4, 4) if isinstance(config, PatchGANConfig) else (3, 3, 3)
        widths = [config.channels * min(2**n, 8) for n in range(config.layers + 1)]

        def convolution(entering: int, leaving: int, stride: tuple[int, ...], bias: bool) -> nnx.Conv:
            return nnx.Conv(
                entering,
                leaving,
                kernel,
                strides=stride,
                use_bias=bias,
                padding=[(1, 1)] * len(kernel),
                dtype=policy.compute_dtype,
                param_dtype=policy.param_dtype,
                kernel_init=nnx.initializers.normal(0.02),
                bias_init=uniform_by_fan_in(entering * math.prod(kernel)),
                rngs=rngs,
            )

        strides = config.strides
        layers = [convolution(image_channels, widths[0], strides[0], True), Activation(0.2)]
        for n in range(1, config.layers + 1):
            layers.append(convolution(widths[n - 1], widths[n], strides[n], False))
            layers += [BatchNorm(widths[n], policy=policy, rngs=rngs), Activation(0.2)]
        layers.append(convolution(widths[-1], 1, strides[-1], True))
        self.main = nnx.List(layers)

    def __call__(self, x: Float[Array, "B *S 3"], train: bool) -> Float[Array, "B *s 1"]:
        """Logits in float32 at least; positive means real."""
        for layer in self.main:
            x = layer(x, train) if isinstance(layer, BatchNorm) else layer(x)
        return at_least_float32(x)


def binomial_kernel(size: int) -> np.ndarray:
    """(size, size) outer product of binomial coefficients, divided by its sum; size 3, 4 or 5."""
    row = {3: (1, 2, 1), 4: (1, 3, 3, 1), 5: (1, 4, 6, 4, 1)}[size]
    kernel = np.outer(row, row).astype(np.float64)
    return kernel / kernel.sum()


class BlurPool(nnx.Module):
    """Depthwise binomial blur with stride 2 and SAME padding (an odd row or column goes to the bottom or right)."""

    def __init__(self, size: int, *, policy: Policy):
        self.kernel = nnx.BatchStat(jnp.asarray(binomial_kernel(size), policy.param_dtype)[None, None])

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
        """Half the resolution, rounded up."""
        channels = x.shape[-1]
        kernel = jnp.broadcast_to(self.kernel[...][0, 0, :, :, None, None], (*self.kernel.shape[2:], 1, channels))
        return jax.lax.conv_general_dilated(
            x,
            kernel.astype(x.dtype),
            window_strides=(2, 2),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=channels,
        )


class AveragePool(nnx.Module):
    """2x2 average, stride 2."""

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
        """Half the resolution; an odd last row or column is dropped."""
        return nnx.avg_pool(x, (2, 2), strides=(2, 2))


class BlurDiscriminator(nnx.Module):
    """5x5 stem, stages of 3x3, downsampling, group norm and leaky ReLU 0.1, then 1x1 and 5x5 to logits."""

    def __init__(self, config: BlurConfig, image_channels: int, *, policy: Policy, rngs: nnx.Rngs):
        def convolution(entering: int, leaving: int, size: int) -> nnx.Conv:
            return conv(entering, leaving, size, padding="SAME", policy=policy, rngs=rngs)

        width = config.hidden_channels
        self.block_in = nnx.List([convolution(image_channels, width, 5), Activation(0.1)])
        stages = []
        for i in range(config.stages):
            leaving = config.hidden_channels * 2**i
            down = BlurPool(config.blur_kernel_size, policy=policy) if config.blur_resample else AveragePool()
            norm = GroupNorm(leaving, policy=policy, epsilon=1e-5)
            stages.append(nnx.List([convolution(width, leaving, 3), down, norm, Activation(0.1)]))
            width = leaving
        self.blocks = nnx.List(stages)
        self.to_logits = nnx.List([convolution(width, width, 1), Activation(0.1), convolution(width, 1, 5)])

    def __call__(self, x: Float[Array, "B H W 3"], train: bool) -> Float[Array, "B h w 1"]:
        """Logits in float32 at least; `train` changes nothing here."""
        for layer in (*self.block_in, *(layer for stage in self.blocks for layer in stage), *self.to_logits):
            x = layer(x)
        return at_least_float32(x)


def build_discriminator(
    config: DiscriminatorConfig, image_channels: int, *, policy: Policy, rngs: nnx.Rngs
) -> PatchGAN | BlurDiscriminator:
    """The discriminator a configuration names."""
    if not isinstance(config, BlurConfig):
        return PatchGAN(config, image_channels, policy=policy, rngs=rngs)
    return BlurDiscriminator(config, image_channels, policy=policy, rngs=rngs)
