"""Fused operations of transformers on a device, and the plain computations that they replace.

Shape legend: B batch, T positions, C width, N heads, H head width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Widen half precision; float32 and float64 stay."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def attention(
    q: Float[Tensor, "B N S H"],
    k: Float[Tensor, "B N T H"],
    v: Float[Tensor, "B N T H"],
    visible: Bool[Tensor, "S T"] | None,
    causal: bool,
) -> Float[Tensor, "B N S H"]:
    """Softmax attention with scale H^-0.5, over all positions, the visible ones, or those that came before."""
    return F.scaled_dot_product_attention(q, k, v, visible, is_causal=causal)


def rotate(
    x: Float[Tensor, "B N T H"], cosine: Float[Tensor, "T H/2"], sine: Float[Tensor, "T H/2"]
) -> Float[Tensor, "B N T H"]:
    """Turn interleaved pairs (a, b) to (a cos - b sin, b cos + a sin), in float32 at least."""
    a, b = at_least_float32(x).unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([a * cosine - b * sine, b * cosine + a * sine], dim=-1)
    return turned.flatten(-2).to(x.dtype)


def rms_norm(x: Float[Tensor, "*B C"], weight: Float[Tensor, " C"], epsilon: float) -> Float[Tensor, "*B C"]:
    """Divide by the root mean square, in float32 at least, and multiply by a weight."""
    full = at_least_float32(x)
    normed = full * torch.rsqrt(full.square().mean(dim=-1, keepdim=True) + epsilon)
    return normed.to(x.dtype) * weight.to(x.dtype)


def swiglu(gate: Float[Tensor, "*B C"], up: Float[Tensor, "*B C"]) -> Float[Tensor, "*B C"]:
    """silu(gate) * up."""
    return F.silu(gate) * up


@dataclasses.dataclass(frozen=True)
class Kernels:
    """The four computations of a transformer that a device may fuse; arguments are those of the plain ones above."""

    attention: Callable[[Tensor, Tensor, Tensor, Tensor | None, bool], Tensor] = attention
    rotate: Callable[[Tensor, Tensor, Tensor], Tensor] = rotate
    rms_norm: Callable[[Tensor, Tensor, float], Tensor] = rms_norm
    swiglu: Callable[[Tensor, Tensor], Tensor] = swiglu


PLAIN = Kernels()
