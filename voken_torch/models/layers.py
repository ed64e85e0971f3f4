"""Layers shared by the networks: convolution, group norm, resampling, attention.

Weights and biases of convolutions and linear layers start as PyTorch's own defaults, uniform in +-1/sqrt(fan_in).
Shape legend: B batch, H/W height and width, C channels, S any spatial axes, L positions.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from voken_torch.device.kernels import at_least_float32

Attention = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""(q, k, v, scale) -> mixed values, each (B, L, C), one head."""


def plain_attention(
    q: Float[Tensor, "B L C"], k: Float[Tensor, "B M C"], v: Float[Tensor, "B M C"], scale: float
) -> Float[Tensor, "B L C"]:
    """Softmax attention with one head, the softmax in float32 at least."""
    logits = at_least_float32(torch.bmm(q, k.transpose(1, 2))) * scale
    return torch.bmm(logits.softmax(dim=-1).to(v.dtype), v)


@dataclasses.dataclass(frozen=True)
class Policy:
    """Settings that all networks share.

    Attributes:
        remat: recompute blocks in the backward pass instead of keeping their activations.
        attention: the plain computation, or a device's fused one.
        norm_groups: groups of every group norm.
    """

    remat: bool = False
    attention: Attention = plain_attention
    norm_groups: int = 32

    def with_groups(self, norm_groups: int) -> Policy:
        """Return a copy with another number of group-norm groups."""
        return dataclasses.replace(self, norm_groups=norm_groups)


def conv(
    in_channels: int,
    out_channels: int,
    size: int,
    *,
    stride: int | tuple[int, ...] = 1,
    bias: bool = True,
    padding: int | None = None,
) -> nn.Conv2d:
    """2-D convolution; `padding` defaults to size // 2 on every side."""
    padding = size // 2 if padding is None else padding
    return nn.Conv2d(in_channels, out_channels, size, stride=stride, padding=padding, bias=bias)  # type: ignore[arg-type]


class GroupNorm(nn.GroupNorm):
    """Group norm with scale and bias; 32 groups, epsilon 1e-6 unless said otherwise; in float32 at least."""

    def __init__(self, channels: int, *, groups: int = 32, epsilon: float = 1e-6):
        super().__init__(groups, channels, eps=epsilon)

    def forward(self, x: Float[Tensor, "B C *S"]) -> Float[Tensor, "B C *S"]:
        """Same shape and dtype."""
        # Not F.group_norm, which takes a single pixel for a mistake; a group has several channels.
        normed = torch.group_norm(at_least_float32(x), self.num_groups, self.weight, self.bias, self.eps)
        return normed.to(x.dtype)


def swish(x: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """X * sigmoid(x) of what the caller made and does not need any more: without gradients it is written over x."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def plus(update: Float[Tensor, "*S"], x: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """X + update; without gradients it is written over `update`, which the caller made and does not need any more."""
    if torch.is_grad_enabled() or update.dtype != x.dtype:
        return x + update
    return update.add_(x)


def depth_to_space(x: Float[Tensor, "B kC *S"], factor: tuple[int, ...] = (2, 2)) -> Float[Tensor, "B C *kS"]:
    """Channels (offset along each axis, C) to positions, `factor` the enlargement of each axis in S.

    Over images: out[c, 2h+i, 2w+j] = in[(2i + j)C + c, h, w].
    """
    batch, channels, *sides = x.shape
    axes, width = len(sides), channels // math.prod(factor)
    parts = x.reshape(batch, *factor, width, *sides)
    order = [place for axis in range(axes) for place in (axes + 2 + axis, axis + 1)]
    large = [side * times for side, times in zip(sides, factor, strict=True)]
    return parts.permute(0, axes + 1, *order).reshape(batch, width, *large)


def upsample_nearest(x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C 2H 2W"]:
    """Every pixel twice along both sides."""
    return F.interpolate(x, size=(2 * x.shape[2], 2 * x.shape[3]), mode="nearest")


def checkpointed(module: nn.Module, x: Tensor, remat: bool) -> Tensor:
    """`module(x)`, its activations recomputed in the backward pass where `remat`."""
    if not (remat and torch.is_grad_enabled()):
        return module(x)
    result: Any = checkpoint(module, x, use_reentrant=False)
    return result
