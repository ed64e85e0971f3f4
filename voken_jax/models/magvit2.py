"""Open-MAGVIT2's network: a residual encoder, and a decoder whose levels are modulated by its own input.

One network for images and for videos: which convolution it is built of, and by how much each level shrinks along each
axis, is the configuration's choice. Reference: Luo et al., Open-MAGVIT2 (2024), after Yu et al., MAGVIT-v2 (2023).
Shape legend: B batch, S positions at full size (H W, or T H W of a clip), s positions of tokens, Z latent channels,
C/D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from voken_common.config.schema.model import ModelConfig
from voken_jax.models.causal import CausalConv, drop_second_frame
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

Convolve = Callable[..., Any]
"""(width in, width out, kernel side, policy=, rngs=, stride=, bias=) -> a convolution that pads with zeros."""


def convolution_of(config: ModelConfig) -> Convolve:
    """The convolution that a network is built of."""
    return CausalConv if config.is_video else conv


class ResidualBlock(nnx.Module):
    """norm, swish, conv 3, norm, swish, conv 3, plus a shortcut conv 1 where the width changes; no biases."""

    def __init__(self, convolve: Convolve, in_channels: int, out_channels: int, *, policy: Policy, rngs: nnx.Rngs):
        self.norm1 = GroupNorm(in_channels, policy=policy)
        self.norm2 = GroupNorm(out_channels, policy=policy)
        self.conv1 = convolve(in_channels, out_channels, 3, bias=False, policy=policy, rngs=rngs)
        self.conv2 = convolve(out_channels, out_channels, 3, bias=False, policy=policy, rngs=rngs)
        if in_channels != out_channels:
            self.nin_shortcut = convolve(in_channels, out_channels, 1, bias=False, policy=policy, rngs=rngs)

    def __call__(self, x: Float[Array, "B *s C"]) -> Float[Array, "B *s D"]:
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

    def __call__(self, x: Float[Array, "B *S C"], style: Float[Array, "B *s Z"]) -> Float[Array, "B *S C"]:
        """Statistics over every position of the style; its variance is the unbiased one."""
        batch, *_, channels = style.shape
        positions = at_least_float32(style).reshape(batch, -1, channels)
        mean = positions.mean(axis=1)
        spread = jnp.square(positions - mean[:, None]).sum(axis=1) / max(positions.shape[1] - 1, 1)
        ones = (1,) * (x.ndim - 2)
        scale = self.gamma(jnp.sqrt(spread + 1e-6)).reshape(batch, *ones, -1)
        bias = self.beta(mean).reshape(batch, *ones, -1)
        return (scale * group_normalize(x, self.groups, 1e-6) + bias).astype(self.dtype)


def _blocks(
    convolve: Convolve, count: int, in_channels: int, out_channels: int, policy: Policy, rngs: nnx.Rngs
) -> nnx.List:
    widths = [in_channels] + [out_channels] * count
    return nnx.List([ResidualBlock(convolve, widths[i], out_channels, policy=policy, rngs=rngs) for i in range(count)])


class DownLevel(nnx.Module):
    """Residual blocks of the level's width, then a strided convolution except on the last level."""

    def __init__(self, config: ModelConfig, level: int, in_channels: int, *, policy: Policy, rngs: nnx.Rngs):
        convolve, width = convolution_of(config), config.channels * config.channel_multipliers[level]
        self.block = _blocks(convolve, config.residual_blocks, in_channels, width, policy, rngs)
        if level < len(config.level_strides):
            stride = config.level_strides[level]
            self.downsample = convolve(width, width, 3, stride=stride, policy=policy, rngs=rngs)


class Encoder(nnx.Module):
    """Images or clips to latents, one per `config.downsampling` pixels along each side."""

    def __init__(self, config: ModelConfig, *, policy: Policy, rngs: nnx.Rngs):
        policy = policy.with_groups(config.norm_groups)
        convolve, width = convolution_of(config), config.channels
        self.conv_in = convolve(config.image_channels, width, 3, bias=False, policy=policy, rngs=rngs)
        levels = []
        for level, multiplier in enumerate(config.channel_multipliers):
            levels.append(DownLevel(config, level, width, policy=policy, rngs=rngs))
            width = config.channels * multiplier
        self.down = nnx.List(levels)
        self.mid_block = _blocks(convolve, config.residual_blocks, width, width, policy, rngs)
        self.norm_out = GroupNorm(width, policy=policy)
        self.conv_out = convolve(width, config.z_channels, 1, policy=policy, rngs=rngs)
        self.remat = policy.remat

    def __call__(self, x: Float[Array, "B *S 3"]) -> Float[Array, "B *s Z"]:
        """Pixels in [-1, 1]."""
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
    """Convolution to the width times what one position becomes, then depth-to-space."""

    def __init__(self, convolve: Convolve, channels: int, factor: tuple[int, ...], *, policy: Policy, rngs: nnx.Rngs):
        self.conv1 = convolve(channels, math.prod(factor) * channels, 3, policy=policy, rngs=rngs)
        self.factor, self.doubles_time = factor, len(factor) == 3 and factor[0] == 2

    def __call__(self, x: Float[Array, "B *s C"]) -> Float[Array, "B *S C"]:
        """`factor` times as large along each axis; n frames become 2n - 1 where time is doubled."""
        large = depth_to_space(self.conv1(x), self.factor)
        return drop_second_frame(large) if self.doubles_time else large


class UpLevel(nnx.Module):
    """Residual blocks of the level's width, then an upsampling except on level 0."""

    def __init__(self, config: ModelConfig, level: int, in_channels: int, *, policy: Policy, rngs: nnx.Rngs):
        convolve, width = convolution_of(config), config.channels * config.channel_multipliers[level]
        self.block = _blocks(convolve, config.residual_blocks, in_channels, width, policy, rngs)
        if level:
            self.upsample = Upsample(convolve, width, config.level_strides[level - 1], policy=policy, rngs=rngs)


class Decoder(nnx.Module):
    """Codes to images or clips. List index i of `up` and `adaptive` is the level, 0 at full resolution.

    Without `adaptive_norm` (the networks of June 2024) the codes go in once, at the start.
    """

    def __init__(self, config: ModelConfig, *, policy: Policy, rngs: nnx.Rngs):
        policy = policy.with_groups(config.norm_groups)
        convolve = convolution_of(config)
        widths = [config.channels * m for m in config.channel_multipliers]
        self.conv_in = convolve(config.z_channels, widths[-1], 3, policy=policy, rngs=rngs)
        self.mid_block = _blocks(convolve, config.residual_blocks, widths[-1], widths[-1], policy, rngs)
        entering = [*widths[1:], widths[-1]]
        self.up = nnx.List([UpLevel(config, i, width, policy=policy, rngs=rngs) for i, width in enumerate(entering)])
        if config.adaptive_norm:
            self.adaptive = nnx.List(
                [AdaptiveGroupNorm(config.z_channels, width, policy=policy, rngs=rngs) for width in entering]
            )
        self.norm_out = GroupNorm(widths[0], policy=policy)
        self.conv_out = convolve(widths[0], config.image_channels, 3, policy=policy, rngs=rngs)
        self.remat = policy.remat

    def features(self, z: Float[Array, "B *s Z"]) -> Float[Array, "B *S C"]:
        """Compute the input of the last convolution."""
        run = checkpointed(ResidualBlock.__call__, self.remat)
        x = self.conv_in(z)
        for block in self.mid_block:
            x = run(block, x)
        for i in reversed(range(len(self.up))):
            level = self.up[i]
            if hasattr(self, "adaptive"):
                x = self.adaptive[i](x, z)
            for block in level.block:
                x = run(block, x)
            if hasattr(level, "upsample"):
                x = level.upsample(x)
        return swish(self.norm_out(x))

    def __call__(self, z: Float[Array, "B *s Z"]) -> Float[Array, "B *S 3"]:
        """Pixels, unclamped."""
        return self.conv_out(self.features(z))
