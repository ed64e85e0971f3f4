"""VQGAN's image network, used by IBQ and by the VQ baseline: residual blocks with attention at chosen levels.

Reference: Esser et al., Taming Transformers (2021); Shi et al., IBQ (2024).
Shape legend: B batch, H/W pixels, h/w positions, Z latent channels, C/D features.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from voken_common.config.schema.model import ModelConfig
from voken_torch.models.layers import GroupNorm, Policy, checkpointed, conv, plus, swish, upsample_nearest


class ResidualBlock(nn.Module):
    """norm, swish, 3x3, norm, swish, dropout, 3x3, plus a 1x1 shortcut where the width changes."""

    def __init__(self, in_channels: int, out_channels: int, rate: float, policy: Policy):
        super().__init__()
        self.norm1 = GroupNorm(in_channels, groups=policy.norm_groups)
        self.conv1 = conv(in_channels, out_channels, 3)
        self.norm2 = GroupNorm(out_channels, groups=policy.norm_groups)
        self.dropout = nn.Dropout(rate)
        self.conv2 = conv(out_channels, out_channels, 3)
        if in_channels != out_channels:
            self.nin_shortcut = conv(in_channels, out_channels, 1)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D h w"]:
        """Same resolution, out_channels wide; dropout only in training mode."""
        shortcut = self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x
        x = self.conv1(swish(self.norm1(x)))
        x = self.conv2(self.dropout(swish(self.norm2(x))))
        return plus(x, shortcut)


class AttentionBlock(nn.Module):
    """Single-head self-attention over all positions, with 1x1 projections and a residual."""

    def __init__(self, channels: int, policy: Policy):
        super().__init__()
        self.norm = GroupNorm(channels, groups=policy.norm_groups)
        self.q = conv(channels, channels, 1)
        self.k = conv(channels, channels, 1)
        self.v = conv(channels, channels, 1)
        self.proj_out = conv(channels, channels, 1)
        self.attention = policy.attention

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        """Same shape."""
        normal = self.norm(x)
        q, k, v = (f(normal).flatten(2).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = self.attention(q, k, v, x.shape[1] ** -0.5)
        return plus(self.proj_out(mixed.transpose(1, 2).reshape(x.shape)), x)


class Downsample(nn.Module):
    """One zero column right and one zero row below, then a strided 3x3 without padding."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = conv(channels, channels, 3, stride=2, padding=0)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
        """Half the resolution."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest neighbour, then a 3x3."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = conv(channels, channels, 3)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C H W"]:
        """Twice the resolution."""
        return self.conv(upsample_nearest(x))


class Middle(nn.Module):
    """Block, attention, block at the lowest resolution."""

    def __init__(self, channels: int, rate: float, policy: Policy):
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels, rate, policy)
        self.attn_1 = AttentionBlock(channels, policy)
        self.block_2 = ResidualBlock(channels, channels, rate, policy)
        self.remat = policy.remat

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        """Same shape."""
        for module in (self.block_1, self.attn_1, self.block_2):
            x = checkpointed(module, x, self.remat)
        return x


class Level(nn.Module):
    """Residual blocks, each followed by attention where the level has it, then a resampling if any."""

    def __init__(
        self, count: int, in_channels: int, out_channels: int, attention: bool, rate: float, *, policy: Policy
    ):
        super().__init__()
        widths = [in_channels] + [out_channels] * count
        self.block = nn.ModuleList([ResidualBlock(widths[i], out_channels, rate, policy) for i in range(count)])
        self.attn = nn.ModuleList([AttentionBlock(out_channels, policy) for _ in range(count if attention else 0)])
        self.remat = policy.remat

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D h2 w2"]:
        """Blocks and attention, then `downsample` or `upsample` if the level has one."""
        for j, block in enumerate(self.block):
            x = checkpointed(block, x, self.remat)
            if len(self.attn) > 0:
                x = checkpointed(self.attn[j], x, self.remat)
        for name in ("downsample", "upsample"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x


class Encoder(nn.Module):
    """Images to latents, one per `config.downsampling` pixels along each side."""

    def __init__(self, config: ModelConfig, policy: Policy):
        super().__init__()
        policy = policy.with_groups(config.norm_groups)
        width, rate = config.channels, config.dropout
        self.conv_in = conv(config.image_channels, width, 3)
        self.down = nn.ModuleList()
        last = len(config.channel_multipliers) - 1
        for i, multiplier in enumerate(config.channel_multipliers):
            out, attention = config.channels * multiplier, config.resolution // 2**i in config.attention_resolutions
            level = Level(config.residual_blocks, width, out, attention, rate, policy=policy)
            if i != last:
                level.downsample = Downsample(out)
            self.down.append(level)
            width = out
        self.mid = Middle(width, rate, policy)
        self.norm_out = GroupNorm(width, groups=policy.norm_groups)
        self.conv_out = conv(width, config.z_channels, 3)

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B Z h w"]:
        """Images in [-1, 1]."""
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(swish(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Latents to images, with one residual block more per level than the encoder."""

    def __init__(self, config: ModelConfig, policy: Policy):
        super().__init__()
        policy = policy.with_groups(config.norm_groups)
        rate = config.dropout
        widths = [config.channels * m for m in config.channel_multipliers]
        entering = [*widths[1:], widths[-1]]
        self.conv_in = conv(config.z_channels, widths[-1], 3)
        self.mid = Middle(widths[-1], rate, policy)
        self.up = nn.ModuleList()
        for i, width in enumerate(widths):
            attention = config.resolution // 2**i in config.attention_resolutions
            level = Level(config.residual_blocks + 1, entering[i], width, attention, rate, policy=policy)
            if i > 0:
                level.upsample = Upsample(width)
            self.up.append(level)
        self.norm_out = GroupNorm(widths[0], groups=policy.norm_groups)
        self.conv_out = conv(widths[0], config.image_channels, 3)

    def features(self, z: Float[Tensor, "B Z h w"]) -> Float[Tensor, "B C H W"]:
        """Compute the input of the last convolution."""
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        return swish(self.norm_out(x))

    def forward(self, z: Float[Tensor, "B Z h w"]) -> Float[Tensor, "B 3 H W"]:
        """Images, unclamped."""
        return self.conv_out(self.features(z))
