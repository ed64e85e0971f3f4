"""Plain PyTorch encoders of both families, to compare with: the modules as one writes them without a thought of speed.

Channels first, `x * sigmoid(x)`, no buffers written over. Parameter names are the published ones, so that the weights
of `voken_torch.models.autoencoder.Autoencoder` load into them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


class Block(nn.Module):
    """Residual block."""

    def __init__(self, entering: int, leaving: int, bias: bool):
        super().__init__()
        self.norm1, self.norm2 = norm(entering), norm(leaving)
        self.conv1 = nn.Conv2d(entering, leaving, 3, padding=1, bias=bias)
        self.conv2 = nn.Conv2d(leaving, leaving, 3, padding=1, bias=bias)
        if entering != leaving:
            self.nin_shortcut = nn.Conv2d(entering, leaving, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the module."""
        y = self.conv2(swish(self.norm2(self.conv1(swish(self.norm1(x))))))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + y


class Attention(nn.Module):
    """Single-head attention with a residual."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Compute the module."""
        y = self.norm(x)
        q, k, v = (f(y).flatten(2) for f in (self.q, self.k, self.v))
        weights = torch.softmax(torch.bmm(q.transpose(1, 2), k) * x.shape[1] ** -0.5, dim=2)
        return x + self.proj_out(torch.bmm(v, weights.transpose(1, 2)).reshape(x.shape))


class PaddedDown(nn.Module):
    """Strided convolution after a pad on the right and below."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the module."""
        return self.conv(nn.functional.pad(x, (0, 1, 0, 1)))


class LFQEncoder(nn.Module):
    """Open-MAGVIT2: 18 signs a token."""

    def __init__(self, channels: int = 128, multipliers: tuple[int, ...] = (1, 1, 2, 2, 4), blocks: int = 4):
        super().__init__()
        self.conv_in, width = nn.Conv2d(3, channels, 3, padding=1, bias=False), channels
        self.down = nn.ModuleList()
        for level, multiplier in enumerate(multipliers):
            out = channels * multiplier
            parts = {"block": nn.ModuleList(Block(width if i == 0 else out, out, False) for i in range(blocks))}
            if level < len(multipliers) - 1:
                parts["downsample"] = nn.Conv2d(out, out, 3, stride=2, padding=1)
            self.down.append(nn.ModuleDict(parts))
            width = out
        self.mid_block = nn.ModuleList(Block(width, width, False) for _ in range(blocks))
        self.norm_out, self.conv_out = norm(width), nn.Conv2d(width, 18, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the module."""
        x = self.conv_in(x)
        for level in self.down:
            for block in level["block"]:
                x = block(x)
            x = level["downsample"](x) if "downsample" in level else x
        for block in self.mid_block:
            x = block(x)
        return self.conv_out(swish(self.norm_out(x)))


class IBQEncoder(nn.Module):
    """IBQ: the VQGAN encoder with attention on the last level."""

    def __init__(self, channels: int = 128, multipliers: tuple[int, ...] = (1, 1, 2, 2, 4), blocks: int = 4):
        super().__init__()
        self.conv_in, width = nn.Conv2d(3, channels, 3, padding=1), channels
        self.down = nn.ModuleList()
        for level, multiplier in enumerate(multipliers):
            out, last = channels * multiplier, level == len(multipliers) - 1
            parts = {"block": nn.ModuleList(Block(width if i == 0 else out, out, True) for i in range(blocks))}
            parts["attn"] = nn.ModuleList(Attention(out) for _ in range(blocks if last else 0))
            if not last:
                parts["downsample"] = PaddedDown(out)
            self.down.append(nn.ModuleDict(parts))
            width = out
        self.mid = nn.ModuleDict(
            {"block_1": Block(width, width, True), "attn_1": Attention(width), "block_2": Block(width, width, True)}
        )
        self.norm_out, self.conv_out = norm(width), nn.Conv2d(width, 256, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the module."""
        x = self.conv_in(x)
        for level in self.down:
            for number, block in enumerate(level["block"]):
                x = block(x)
                x = level["attn"][number](x) if len(level["attn"]) else x
            x = level["downsample"](x) if "downsample" in level else x
        for part in self.mid.values():
            x = part(x)
        return self.conv_out(swish(self.norm_out(x)))


class Plain(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] to ids (B, h, w)."""

    def __init__(self, kind: str, codes: int):
        super().__init__()
        self.kind = kind
        self.encoder: nn.Module = LFQEncoder() if kind == "lfq" else IBQEncoder()
        if kind != "lfq":
            self.quant_conv = nn.Conv2d(256, 256, 1)
            self.quantize = nn.ModuleDict({"embedding": nn.Embedding(codes, 256)})

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Compute the module."""
        z = self.encoder(images)
        if self.kind == "lfq":
            bits = (z > 0).long() * (2 ** torch.arange(z.shape[1], device=z.device))[:, None, None]
            return bits.sum(1)
        z = self.quant_conv(z).movedim(1, -1)
        return (z @ self.quantize["embedding"].weight.T).argmax(-1)
