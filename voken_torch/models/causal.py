"""Causal 3-D convolution, by which Open-MAGVIT2's network sees videos: no frame depends on a later one.

Reference: Yu et al., MAGVIT-v2 (2023). Shape legend: B batch, T frames, H/W height and width, C/D channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class CausalConv(nn.Module):
    """3-D convolution with zeros around: size // 2 along height and width, size - 1 before the first frame only."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: int,
        *,
        stride: tuple[int, ...] = (1, 1, 1),
        bias: bool = True,
    ):
        super().__init__()
        padding = (0, size // 2, size // 2)
        self.conv_1 = nn.Conv3d(in_channels, out_channels, size, stride, padding, bias=bias)  # type: ignore[arg-type]
        self.before = size - 1

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B D t h w"]:
        """Every `stride`-th position, the first one included."""
        return self.conv_1(F.pad(x, (0, 0, 0, 0, self.before, 0)) if self.before else x)


def drop_second_frame(x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B C t H W"]:
    """Frames 0, 2, 3, ...: after a doubling of time the first latent frame stands for one frame, not for two."""
    return torch.cat([x[:, :, :1], x[:, :, 2:]], dim=2)
