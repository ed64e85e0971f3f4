"""Open-MAGVIT2's image network: a residual encoder, and a decoder whose levels are modulated by its own input.

Reference: Luo et al., Open-MAGVIT2 (2024), after Yu et al., MAGVIT-v2 (2023).
Shape legend: B batch, H/W pixels, h/w tokens, Z latent channels, C/D features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from voken_common.config.tokenizer import ModelConfig
from voken_torch.device.kernels import at_least_float32
from voken_torch.models.layers import GroupNorm, Policy, checkpointed, conv, depth_to_space


class ResidualBlock(nn.Module):
    """norm, swish, 3x3, norm, swish, 3x3, plus a 1x1 shortcut where the width changes; no biases."""

    def __init__(self, in_channels: int, out_channels: int, policy: Policy):
        super().__init__()
        self.norm1 = GroupNorm(in_channels, groups=policy.norm_groups)
        self.norm2 = GroupNorm(out_channels, groups=policy.norm_groups)
        self.conv1 = conv(in_channels, out_channels, 3, bias=False)
        self.conv2 = conv(out_channels, out_channels, 3, bias=False)
        if in_channels != out_channels:
            self.nin_shortcut = conv(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D h w"]:
        """Same resolution, out_channels wide."""
        shortcut = self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x
        x = self.conv1(F.silu(self.norm1(x)))
        x = self.conv2(F.silu(self.norm2(x)))
        return shortcut + x


class AdaptiveGroupNorm(nn.Module):
    """Group norm whose scale and bias come from the style's per-channel spread and mean."""

    def __init__(self, style_channels: int, channels: int, policy: Policy):
        super().__init__()
        self.groups = policy.norm_groups
        self.gamma = nn.Linear(style_channels, channels)
        self.beta = nn.Linear(style_channels, channels)

    def forward(self, x: Float[Tensor, "B C H W"], style: Float[Tensor, "B Z h w"]) -> Float[Tensor, "B C H W"]:
        """Statistics over every position of the style; its variance is the unbiased one."""
        positions = at_least_float32(style).flatten(2)
        mean = positions.mean(dim=2)
        count = max(positions.shape[2] - 1, 1)
        spread = (positions - mean[:, :, None]).square().sum(dim=2) / count
        scale = self.gamma(torch.sqrt(spread + 1e-6))[:, :, None, None]
        bias = self.beta(mean)[:, :, None, None]
        normal = F.group_norm(at_least_float32(x), self.groups, eps=1e-6)
        return (scale * normal + bias).to(x.dtype)


class Blocks(nn.ModuleList):
    """Residual blocks in a row, the first of which may change the width."""

    def __init__(self, count: int, in_channels: int, out_channels: int, policy: Policy):
        widths = [in_channels] + [out_channels] * count
        super().__init__(ResidualBlock(widths[i], out_channels, policy) for i in range(count))
        self.remat = policy.remat

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D h w"]:
        """Same resolution."""
        for block in self:
            x = checkpointed(block, x, self.remat)
        return x


class DownLevel(nn.Module):
    """Residual blocks, then a strided 3x3 except on the last level."""

    def __init__(self, count: int, in_channels: int, out_channels: int, last: bool, policy: Policy):
        super().__init__()
        self.block = Blocks(count, in_channels, out_channels, policy)
        if not last:
            self.downsample = conv(out_channels, out_channels, 3, stride=2)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """Half the resolution, or the same on the last level."""
        x = self.block(x)
        return self.downsample(x) if hasattr(self, "downsample") else x


class Encoder(nn.Module):
    """Images to latents, one per `config.downsampling` pixels along each side."""

    def __init__(self, config: ModelConfig, policy: Policy):
        super().__init__()
        policy = policy.with_groups(config.norm_groups)
        width, count = config.channels, config.residual_blocks
        self.conv_in = conv(config.image_channels, width, 3, bias=False)
        self.down = nn.ModuleList()
        last = len(config.channel_multipliers) - 1
        for i, multiplier in enumerate(config.channel_multipliers):
            out = config.channels * multiplier
            self.down.append(DownLevel(count, width, out, i == last, policy))
            width = out
        self.mid_block = Blocks(count, width, width, policy)
        self.norm_out = GroupNorm(width, groups=policy.norm_groups)
        self.conv_out = conv(width, config.z_channels, 1)

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B Z h w"]:
        """Images in [-1, 1]."""
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid_block(x))))


class Upsample(nn.Module):
    """3x3 to four times the width, then depth-to-space."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = conv(channels, 4 * channels, 3)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C 2h 2w"]:
        """Twice the resolution."""
        return depth_to_space(self.conv1(x))


class UpLevel(nn.Module):
    """Residual blocks, then an upsampling except on level 0."""

    def __init__(self, count: int, in_channels: int, out_channels: int, last: bool, policy: Policy):
        super().__init__()
        self.block = Blocks(count, in_channels, out_channels, policy)
        if not last:
            self.upsample = Upsample(out_channels)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D H W"]:
        """Twice the resolution, or the same on level 0."""
        x = self.block(x)
        return self.upsample(x) if hasattr(self, "upsample") else x


class Decoder(nn.Module):
    """Codes to images. List index i of `up` and `adaptive` is the level, 0 at full resolution."""

    def __init__(self, config: ModelConfig, policy: Policy):
        super().__init__()
        policy = policy.with_groups(config.norm_groups)
        count = config.residual_blocks
        widths = [config.channels * m for m in config.channel_multipliers]
        entering = [*widths[1:], widths[-1]]
        self.conv_in = conv(config.z_channels, widths[-1], 3)
        self.mid_block = Blocks(count, widths[-1], widths[-1], policy)
        self.up = nn.ModuleList([UpLevel(count, entering[i], widths[i], i == 0, policy) for i in range(len(widths))])
        self.adaptive = nn.ModuleList([AdaptiveGroupNorm(config.z_channels, width, policy) for width in entering])
        self.norm_out = GroupNorm(widths[0], groups=policy.norm_groups)
        self.conv_out = conv(widths[0], config.image_channels, 3)

    def features(self, z: Float[Tensor, "B Z h w"]) -> Float[Tensor, "B C H W"]:
        """What the last convolution sees."""
        x = self.mid_block(self.conv_in(z))
        for level, adaptive in zip(reversed(self.up), reversed(self.adaptive), strict=True):
            x = level(adaptive(x, z))
        return F.silu(self.norm_out(x))

    def forward(self, z: Float[Tensor, "B Z h w"]) -> Float[Tensor, "B 3 H W"]:
        """Images, unclamped."""
        return self.conv_out(self.features(z))
