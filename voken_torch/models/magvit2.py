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

import torch
from jaxtyping import Float
from torch import Tensor, nn

from voken_common.config.schema.model import ModelConfig
from voken_torch.device.kernels import at_least_float32
from voken_torch.models.causal import CausalConv, drop_second_frame
from voken_torch.models.layers import GroupNorm, Policy, checkpointed, conv, depth_to_space, plus, swish

Convolve = Callable[..., Any]
"""(width in, width out, kernel side, stride=, bias=) -> a convolution that pads with zeros."""


def convolution_of(config: ModelConfig) -> Convolve:
    """The convolution that a network is built of."""
    return CausalConv if config.is_video else conv


class ResidualBlock(nn.Module):
    """norm, swish, conv 3, norm, swish, conv 3, plus a shortcut conv 1 where the width changes; no biases."""

    def __init__(self, convolve: Convolve, in_channels: int, out_channels: int, policy: Policy):
        super().__init__()
        self.norm1 = GroupNorm(in_channels, groups=policy.norm_groups)
        self.norm2 = GroupNorm(out_channels, groups=policy.norm_groups)
        self.conv1 = convolve(in_channels, out_channels, 3, bias=False)
        self.conv2 = convolve(out_channels, out_channels, 3, bias=False)
        if in_channels != out_channels:
            self.nin_shortcut = convolve(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Float[Tensor, "B C *s"]) -> Float[Tensor, "B D *s"]:
        """Same resolution, out_channels wide."""
        shortcut = self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x
        x = self.conv1(swish(self.norm1(x)))
        x = self.conv2(swish(self.norm2(x)))
        return plus(x, shortcut)


class AdaptiveGroupNorm(nn.Module):
    """Group norm whose scale and bias come from the style's per-channel spread and mean."""

    def __init__(self, style_channels: int, channels: int, policy: Policy):
        super().__init__()
        self.groups = policy.norm_groups
        self.gamma = nn.Linear(style_channels, channels)
        self.beta = nn.Linear(style_channels, channels)

    def forward(self, x: Float[Tensor, "B C *S"], style: Float[Tensor, "B Z *s"]) -> Float[Tensor, "B C *S"]:
        """Statistics over every position of the style; its variance is the unbiased one."""
        positions = at_least_float32(style).flatten(2)
        mean = positions.mean(dim=2)
        count = max(positions.shape[2] - 1, 1)
        spread = (positions - mean[:, :, None]).square().sum(dim=2) / count
        shape = (*x.shape[:2], *(1,) * (x.ndim - 2))
        scale = self.gamma(torch.sqrt(spread + 1e-6)).reshape(shape)
        bias = self.beta(mean).reshape(shape)
        normal = torch.group_norm(at_least_float32(x), self.groups, None, None, 1e-6)
        return (scale * normal + bias).to(x.dtype)


class Blocks(nn.ModuleList):
    """Residual blocks in a row, the first of which may change the width."""

    def __init__(self, config: ModelConfig, in_channels: int, out_channels: int, policy: Policy):
        convolve, count = convolution_of(config), config.residual_blocks
        widths = [in_channels] + [out_channels] * count
        super().__init__(ResidualBlock(convolve, widths[i], out_channels, policy) for i in range(count))
        self.remat = policy.remat

    def forward(self, x: Float[Tensor, "B C *s"]) -> Float[Tensor, "B D *s"]:
        """Same resolution."""
        for block in self:
            x = checkpointed(block, x, self.remat)
        return x


class DownLevel(nn.Module):
    """Residual blocks of the level's width, then a strided convolution except on the last level."""

    def __init__(self, config: ModelConfig, level: int, in_channels: int, policy: Policy):
        super().__init__()
        width = config.channels * config.channel_multipliers[level]
        self.block = Blocks(config, in_channels, width, policy)
        if level < len(config.level_strides):
            self.downsample = convolution_of(config)(width, width, 3, stride=config.level_strides[level])

    def forward(self, x: Float[Tensor, "B C *S"]) -> Float[Tensor, "B D *s"]:
        """Half the resolution, or the same on the last level."""
        x = self.block(x)
        return self.downsample(x) if hasattr(self, "downsample") else x


class Encoder(nn.Module):
    """Images or clips to latents, one per `config.downsampling` pixels along each side."""

    def __init__(self, config: ModelConfig, policy: Policy):
        super().__init__()
        policy = policy.with_groups(config.norm_groups)
        convolve, width = convolution_of(config), config.channels
        self.conv_in = convolve(config.image_channels, width, 3, bias=False)
        self.down = nn.ModuleList()
        for level, multiplier in enumerate(config.channel_multipliers):
            self.down.append(DownLevel(config, level, width, policy))
            width = config.channels * multiplier
        self.mid_block = Blocks(config, width, width, policy)
        self.norm_out = GroupNorm(width, groups=policy.norm_groups)
        self.conv_out = convolve(width, config.z_channels, 1)

    def forward(self, x: Float[Tensor, "B 3 *S"]) -> Float[Tensor, "B Z *s"]:
        """Pixels in [-1, 1]."""
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(swish(self.norm_out(self.mid_block(x))))


class Upsample(nn.Module):
    """Convolution to the width times what one position becomes, then depth-to-space."""

    def __init__(self, convolve: Convolve, channels: int, factor: tuple[int, ...]):
        super().__init__()
        self.conv1 = convolve(channels, math.prod(factor) * channels, 3)
        self.factor, self.doubles_time = factor, len(factor) == 3 and factor[0] == 2

    def forward(self, x: Float[Tensor, "B C *s"]) -> Float[Tensor, "B C *S"]:
        """`factor` times as large along each axis; n frames become 2n - 1 where time is doubled."""
        large = depth_to_space(self.conv1(x), self.factor)
        return drop_second_frame(large) if self.doubles_time else large


class UpLevel(nn.Module):
    """Residual blocks of the level's width, then an upsampling except on level 0."""

    def __init__(self, config: ModelConfig, level: int, in_channels: int, policy: Policy):
        super().__init__()
        width = config.channels * config.channel_multipliers[level]
        self.block = Blocks(config, in_channels, width, policy)
        if level:
            self.upsample = Upsample(convolution_of(config), width, config.level_strides[level - 1])

    def forward(self, x: Float[Tensor, "B C *s"]) -> Float[Tensor, "B D *S"]:
        """Twice the resolution, or the same on level 0."""
        x = self.block(x)
        return self.upsample(x) if hasattr(self, "upsample") else x


class Decoder(nn.Module):
    """Codes to images or clips. List index i of `up` and `adaptive` is the level, 0 at full resolution.

    Without `adaptive_norm` (the networks of June 2024) the codes go in once, at the start.
    """

    def __init__(self, config: ModelConfig, policy: Policy):
        super().__init__()
        policy = policy.with_groups(config.norm_groups)
        convolve = convolution_of(config)
        widths = [config.channels * m for m in config.channel_multipliers]
        entering = [*widths[1:], widths[-1]]
        self.conv_in = convolve(config.z_channels, widths[-1], 3)
        self.mid_block = Blocks(config, widths[-1], widths[-1], policy)
        self.up = nn.ModuleList([UpLevel(config, i, width, policy) for i, width in enumerate(entering)])
        if config.adaptive_norm:
            self.adaptive = nn.ModuleList([AdaptiveGroupNorm(config.z_channels, width, policy) for width in entering])
        self.norm_out = GroupNorm(widths[0], groups=policy.norm_groups)
        self.conv_out = convolve(widths[0], config.image_channels, 3)

    def features(self, z: Float[Tensor, "B Z *s"]) -> Float[Tensor, "B C *S"]:
        """Compute the input of the last convolution."""
        x = self.mid_block(self.conv_in(z))
        for i in reversed(range(len(self.up))):
            if hasattr(self, "adaptive"):
                x = self.adaptive[i](x, z)
            x = self.up[i](x)
        return swish(self.norm_out(x))

    def forward(self, z: Float[Tensor, "B Z *s"]) -> Float[Tensor, "B 3 *S"]:
        """Pixels, unclamped."""
        return self.conv_out(self.features(z))
