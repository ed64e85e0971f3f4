"""VQGAN's image network, used by IBQ and by the VQ baseline: residual blocks with attention at chosen levels.

Reference: Esser et al., Taming Transformers (2021); Shi et al., IBQ (2024).
Shape legend: B batch, H/W pixels, h/w positions, Z latent channels, C/D features.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from voken_common.config.schema.model import ModelConfig
from voken_jax.models.layers import (
    GroupNorm,
    Policy,
    at_least_float32,
    checkpointed,
    conv,
    dropout,
    subkey,
    swish,
    upsample_nearest,
)

Key = PRNGKeyArray | None


class ResidualBlock(nnx.Module):
    """norm, swish, 3x3, norm, swish, dropout, 3x3, plus a 1x1 shortcut where the width changes."""

    def __init__(self, in_channels: int, out_channels: int, rate: float, *, policy: Policy, rngs: nnx.Rngs):
        self.norm1 = GroupNorm(in_channels, policy=policy)
        self.conv1 = conv(in_channels, out_channels, 3, policy=policy, rngs=rngs)
        self.norm2 = GroupNorm(out_channels, policy=policy)
        self.conv2 = conv(out_channels, out_channels, 3, policy=policy, rngs=rngs)
        if in_channels != out_channels:
            self.nin_shortcut = conv(in_channels, out_channels, 1, policy=policy, rngs=rngs)
        self.rate = rate

    def __call__(self, x: Float[Array, "B h w C"], key: Key = None) -> Float[Array, "B h w D"]:
        """Same resolution, out_channels wide; dropout only with a key."""
        shortcut = self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x
        x = self.conv1(swish(self.norm1(x)))
        x = self.conv2(dropout(swish(self.norm2(x)), self.rate, key))
        return shortcut + x


class AttentionBlock(nnx.Module):
    """Single-head self-attention over all positions, with 1x1 projections and a residual."""

    def __init__(self, channels: int, *, policy: Policy, rngs: nnx.Rngs):
        self.norm = GroupNorm(channels, policy=policy)
        self.q = conv(channels, channels, 1, policy=policy, rngs=rngs)
        self.k = conv(channels, channels, 1, policy=policy, rngs=rngs)
        self.v = conv(channels, channels, 1, policy=policy, rngs=rngs)
        self.proj_out = conv(channels, channels, 1, policy=policy, rngs=rngs)

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        """Softmax in float32 at least."""
        batch, height, width, channels = x.shape
        normal = self.norm(x)
        q, k, v = (f(normal).reshape(batch, height * width, channels) for f in (self.q, self.k, self.v))
        logits = at_least_float32(jnp.einsum("bic,bjc->bij", q, k)) * channels**-0.5
        mixed = jnp.einsum("bij,bjc->bic", jax.nn.softmax(logits, axis=-1).astype(v.dtype), v)
        return x + self.proj_out(mixed.reshape(x.shape))


class Downsample(nnx.Module):
    """One zero column right and one zero row below, then a strided 3x3 without padding."""

    def __init__(self, channels: int, *, policy: Policy, rngs: nnx.Rngs):
        self.conv = conv(channels, channels, 3, stride=2, padding=[(0, 1), (0, 1)], policy=policy, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
        """Half the resolution."""
        return self.conv(x)


class Upsample(nnx.Module):
    """Nearest neighbour, then a 3x3."""

    def __init__(self, channels: int, *, policy: Policy, rngs: nnx.Rngs):
        self.conv = conv(channels, channels, 3, policy=policy, rngs=rngs)

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B H W C"]:
        """Twice the resolution."""
        return self.conv(upsample_nearest(x))


class Middle(nnx.Module):
    """Block, attention, block at the lowest resolution."""

    def __init__(self, channels: int, rate: float, *, policy: Policy, rngs: nnx.Rngs):
        self.block_1 = ResidualBlock(channels, channels, rate, policy=policy, rngs=rngs)
        self.attn_1 = AttentionBlock(channels, policy=policy, rngs=rngs)
        self.block_2 = ResidualBlock(channels, channels, rate, policy=policy, rngs=rngs)

    def __call__(self, x: Float[Array, "B h w C"], key: Key, remat: bool) -> Float[Array, "B h w C"]:
        """Same shape."""
        block, attention = _runners(remat)
        x = block(self.block_1, x, subkey(key, 0))
        return block(self.block_2, attention(self.attn_1, x), subkey(key, 1))


class Level(nnx.Module):
    """Residual blocks, each followed by attention where the level has it, then a resampling if any."""

    def __init__(
        self,
        count: int,
        in_channels: int,
        out_channels: int,
        attention: bool,
        rate: float,
        resampling: type[Downsample] | type[Upsample] | None,
        *,
        policy: Policy,
        rngs: nnx.Rngs,
    ):
        widths = [in_channels] + [out_channels] * count
        self.block = nnx.List(
            [ResidualBlock(widths[i], out_channels, rate, policy=policy, rngs=rngs) for i in range(count)]
        )
        self.attn = nnx.List(
            [AttentionBlock(out_channels, policy=policy, rngs=rngs) for _ in range(count if attention else 0)]
        )
        if resampling is Downsample:
            self.downsample = Downsample(out_channels, policy=policy, rngs=rngs)
        elif resampling is Upsample:
            self.upsample = Upsample(out_channels, policy=policy, rngs=rngs)

    def __call__(self, x: Float[Array, "B h w C"], key: Key, remat: bool) -> Float[Array, "B h2 w2 D"]:
        """Blocks and attention, then `downsample` or `upsample` if the level has one."""
        block, attention = _runners(remat)
        for j, residual in enumerate(self.block):
            x = block(residual, x, subkey(key, j))
            if len(self.attn) > 0:
                x = attention(self.attn[j], x)
        for name in ("downsample", "upsample"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x


class Encoder(nnx.Module):
    """Images to latents, one per `config.downsampling` pixels along each side."""

    def __init__(self, config: ModelConfig, *, policy: Policy, rngs: nnx.Rngs):
        policy = policy.with_groups(config.norm_groups)
        width, rate = config.channels, config.dropout
        self.conv_in = conv(config.image_channels, width, 3, policy=policy, rngs=rngs)
        levels, last = [], len(config.channel_multipliers) - 1
        for i, multiplier in enumerate(config.channel_multipliers):
            out, attention = config.channels * multiplier, config.resolution // 2**i in config.attention_resolutions
            down = Downsample if i != last else None
            count = config.residual_blocks
            levels.append(Level(count, width, out, attention, rate, down, policy=policy, rngs=rngs))
            width = out
        self.down = nnx.List(levels)
        self.mid = Middle(width, rate, policy=policy, rngs=rngs)
        self.norm_out = GroupNorm(width, policy=policy)
        self.conv_out = conv(width, config.z_channels, 3, policy=policy, rngs=rngs)
        self.remat = policy.remat

    def __call__(self, x: Float[Array, "B H W 3"], key: Key = None) -> Float[Array, "B h w Z"]:
        """Images in [-1, 1]; dropout only with a key."""
        x = self.conv_in(x)
        for i, level in enumerate(self.down):
            x = level(x, subkey(key, i), self.remat)
        x = self.mid(x, subkey(key, len(self.down)), self.remat)
        return self.conv_out(swish(self.norm_out(x)))


class Decoder(nnx.Module):
    """Latents to images, with one residual block more per level than the encoder."""

    def __init__(self, config: ModelConfig, *, policy: Policy, rngs: nnx.Rngs):
        policy = policy.with_groups(config.norm_groups)
        rate = config.dropout
        widths = [config.channels * m for m in config.channel_multipliers]
        self.conv_in = conv(config.z_channels, widths[-1], 3, policy=policy, rngs=rngs)
        self.mid = Middle(widths[-1], rate, policy=policy, rngs=rngs)
        entering, levels = [*widths[1:], widths[-1]], []
        for i, width in enumerate(widths):
            attention = config.resolution // 2**i in config.attention_resolutions
            up = Upsample if i > 0 else None
            count = config.residual_blocks + 1
            levels.append(Level(count, entering[i], width, attention, rate, up, policy=policy, rngs=rngs))
        self.up = nnx.List(levels)
        self.norm_out = GroupNorm(widths[0], policy=policy)
        self.conv_out = conv(widths[0], config.image_channels, 3, policy=policy, rngs=rngs)
        self.remat = policy.remat

    def features(self, z: Float[Array, "B h w Z"], key: Key = None) -> Float[Array, "B H W C"]:
        """Compute the input of the last convolution."""
        x = self.mid(self.conv_in(z), subkey(key, len(self.up)), self.remat)
        for i in reversed(range(len(self.up))):
            x = self.up[i](x, subkey(key, i), self.remat)
        return swish(self.norm_out(x))

    def __call__(self, z: Float[Array, "B h w Z"]) -> Float[Array, "B H W 3"]:
        """Images, unclamped."""
        return self.conv_out(self.features(z))


def _runners(remat: bool) -> tuple:
    return checkpointed(ResidualBlock.__call__, remat), checkpointed(AttentionBlock.__call__, remat)
