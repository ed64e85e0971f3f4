"""Open-MAGVIT2's image network: a residual encoder, and a decoder whose levels are modulated by its own input.

Reference: Luo et al., Open-MAGVIT2 (2024), after Yu et al., MAGVIT-v2 (2023).
Shape legend: B batch, H/W pixels, h/w tokens, Z latent channels, C features.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from voken_common.config.tokenizer import ModelConfig
from voken_jax.models.layers import (
    GroupNorm,
    Policy,
    at_least_float32,
    checkpointed,
    conv,
    depth_to_space,
    group_normalize,
    linear,
    swish,
)


class ResidualBlock(nnx.Module):
    """norm, swish, 3x3, norm, swish, 3x3, plus a 1x1 shortcut where the width changes; no biases."""

    def __init__(self, in_channels: int, out_channels: int, *, policy: Policy, rngs: nnx.Rngs):
        self.norm1 = GroupNorm(in_channels, policy=policy)
        self.norm2 = GroupNorm(out_channels, policy=policy)
        self.conv1 = conv(in_channels, out_channels, 3, bias=False, policy=policy, rngs=rngs)
        self.conv2 = conv(out_channels, out_channels, 3, bias=False, policy=policy, rngs=rngs)
        if in_channels != out_channels:
            self.nin_shortcut = conv(in_channels, out_channels, 1, bias=False, policy=policy, rngs=rngs)

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w D"]:
        """Same resolution, out_channels wide."""
        shortcut = self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x
        x = self.conv1(swish(self.norm1(x)))
        x = self.conv2(swish(self.norm2(x)))
        return shortcut + x


class AdaptiveGroupNorm(nnx.Module):
    """Group norm whose scale and bias come from the style's per-channel spread and mean."""

    def __init__(self, style_channels: int, channels: int, *, policy: Policy, rngs: nnx.Rngs):
        self.gamma = linear(style_channels, channels, policy=policy, rngs=rngs)
        self.beta = linear(style_channels, channels, policy=policy, rngs=rngs)
        self.groups, self.dtype = policy.norm_groups, policy.compute_dtype

    def __call__(self, x: Float[Array, "B H W C"], style: Float[Array, "B h w Z"]) -> Float[Array, "B H W C"]:
        """Statistics over every position of the style; its variance is the unbiased one."""
        batch, *_, channels = style.shape
        positions = at_least_float32(style).reshape(batch, -1, channels)
        mean = positions.mean(axis=1)
        spread = jnp.square(positions - mean[:, None]).sum(axis=1) / max(positions.shape[1] - 1, 1)
        ones = (1,) * (x.ndim - 2)
        scale = self.gamma(jnp.sqrt(spread + 1e-6)).reshape(batch, *ones, -1)
        bias = self.beta(mean).reshape(batch, *ones, -1)
        return (scale * group_normalize(x, self.groups, 1e-6) + bias).astype(self.dtype)


def _blocks(count: int, in_channels: int, out_channels: int, policy: Policy, rngs: nnx.Rngs) -> nnx.List:
    widths = [in_channels] + [out_channels] * count
    return nnx.List([ResidualBlock(widths[i], out_channels, policy=policy, rngs=rngs) for i in range(count)])


class DownLevel(nnx.Module):
    """Residual blocks, then a strided 3x3 except on the last level."""

    def __init__(self, count: int, in_channels: int, out_channels: int, last: bool, *, policy: Policy, rngs: nnx.Rngs):
        self.block = _blocks(count, in_channels, out_channels, policy, rngs)
        if not last:
            self.downsample = conv(out_channels, out_channels, 3, stride=2, policy=policy, rngs=rngs)


class Encoder(nnx.Module):
    """Images to latents, one per `config.downsampling` pixels along each side."""

    def __init__(self, config: ModelConfig, *, policy: Policy, rngs: nnx.Rngs):
        policy = policy.with_groups(config.norm_groups)
        width, count = config.channels, config.residual_blocks
        self.conv_in = conv(config.image_channels, width, 3, bias=False, policy=policy, rngs=rngs)
        levels, last = [], len(config.channel_multipliers) - 1
        for i, multiplier in enumerate(config.channel_multipliers):
            out = config.channels * multiplier
            levels.append(DownLevel(count, width, out, i == last, policy=policy, rngs=rngs))
            width = out
        self.down = nnx.List(levels)
        self.mid_block = _blocks(count, width, width, policy, rngs)
        self.norm_out = GroupNorm(width, policy=policy)
        self.conv_out = conv(width, config.z_channels, 1, policy=policy, rngs=rngs)
        self.remat = policy.remat

    def __call__(self, x: Float[Array, "B H W 3"]) -> Float[Array, "B h w Z"]:
        """Images in [-1, 1]."""
        run = checkpointed(ResidualBlock.__call__, self.remat)
        x = self.conv_in(x)
        for level in self.down:
            for block in level.block:
                x = run(block, x)
            if hasattr(level, "downsample"):
                x = level.downsample(x)
        for block in self.mid_block:
            x = run(block, x)
        return self.conv_out(swish(self.norm_out(x)))


class Upsample(nnx.Module):
    """3x3 to four times the width, then depth-to-space."""

    def __init__(self, channels: int, *, policy: Policy, rngs: nnx.Rngs):
        self.conv1 = conv(channels, 4 * channels, 3, policy=policy, rngs=rngs)

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B 2h 2w C"]:
        """Twice the resolution."""
        return depth_to_space(self.conv1(x))


class UpLevel(nnx.Module):
    """Residual blocks, then an upsampling except on level 0."""

    def __init__(self, count: int, in_channels: int, out_channels: int, last: bool, *, policy: Policy, rngs: nnx.Rngs):
        self.block = _blocks(count, in_channels, out_channels, policy, rngs)
        if not last:
            self.upsample = Upsample(out_channels, policy=policy, rngs=rngs)


class Decoder(nnx.Module):
    """Codes to images. List index i of `up` and `adaptive` is the level, 0 at full resolution."""

    def __init__(self, config: ModelConfig, *, policy: Policy, rngs: nnx.Rngs):
        policy = policy.with_groups(config.norm_groups)
        count = config.residual_blocks
        widths = [config.channels * m for m in config.channel_multipliers]
        self.conv_in = conv(config.z_channels, widths[-1], 3, policy=policy, rngs=rngs)
        self.mid_block = _blocks(count, widths[-1], widths[-1], policy, rngs)
        entering = [*widths[1:], widths[-1]]
        self.up = nnx.List(
            [UpLevel(count, entering[i], widths[i], i == 0, policy=policy, rngs=rngs) for i in range(len(widths))]
        )
        self.adaptive = nnx.List(
            [AdaptiveGroupNorm(config.z_channels, width, policy=policy, rngs=rngs) for width in entering]
        )
        self.norm_out = GroupNorm(widths[0], policy=policy)
        self.conv_out = conv(widths[0], config.image_channels, 3, policy=policy, rngs=rngs)
        self.remat = policy.remat

    def features(self, z: Float[Array, "B h w Z"]) -> Float[Array, "B H W C"]:
        """What the last convolution sees."""
        run = checkpointed(ResidualBlock.__call__, self.remat)
        x = self.conv_in(z)
        for block in self.mid_block:
            x = run(block, x)
        for i in reversed(range(len(self.up))):
            level = self.up[i]
            x = self.adaptive[i](x, z)
            for block in level.block:
                x = run(block, x)
            if hasattr(level, "upsample"):
                x = level.upsample(x)
        return swish(self.norm_out(x))

    def __call__(self, z: Float[Array, "B h w Z"]) -> Float[Array, "B H W 3"]:
        """Images, unclamped."""
        return self.conv_out(self.features(z))
