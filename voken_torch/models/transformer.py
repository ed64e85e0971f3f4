"""The transformer core of both generator families: RMS norm, rotary attention, SwiGLU, and how layers are run.

Names are those of the published checkpoints. Shape legend: B batch, T positions, C width, N heads, H head width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from voken_common.config.schema.transformer import TransformerConfig
from voken_torch.device.kernels import PLAIN, Kernels

EPSILON = 1e-5
DEVIATION = 0.02
FEW_ROWS = 16
"""So many rows or fewer are multiplied with the weights on the left, on a CPU; see `Linear`."""


Position = int | Tensor
"""Number of a position: an int, or a (1,) tensor of int64 where one program has to serve all positions."""


def at(values: Tensor, dim: int, position: Position) -> Tensor:
    """The entry of a position along one axis, which stays with length 1."""
    if isinstance(position, int):
        return values.narrow(dim, position, 1)
    return values.index_select(dim, position)


class Rotary(NamedTuple):
    """Rows of the rotary table: cosine and sine per position and pair of features."""

    cosine: Float[Tensor, "T H/2"]
    sine: Float[Tensor, "T H/2"]

    def rows(self, start: int, stop: int) -> Rotary:
        """Some of the rows."""
        return Rotary(self.cosine[start:stop], self.sine[start:stop])

    def row(self, position: Position) -> Rotary:
        """The row of one position."""
        return Rotary(*(at(part, 0, position) for part in self))


class KeysValues(NamedTuple):
    """Keys and values of every position of one layer, written in place as positions are visited."""

    keys: Float[Tensor, "B N T H"]
    values: Float[Tensor, "B N T H"]

    def write(self, k: Float[Tensor, "B N 1 H"], v: Float[Tensor, "B N 1 H"], position: Position) -> KeysValues:
        """Enter one position. Returns what is to be read: the filled part, or all where the position is a tensor."""
        new = KeysValues(k.to(self.keys.dtype), v.to(self.values.dtype))
        if isinstance(position, int):
            for whole, part in zip(self, new, strict=True):
                whole[:, :, position : position + 1] = part
            return KeysValues(self.keys[:, :, : position + 1], self.values[:, :, : position + 1])
        for whole, part in zip(self, new, strict=True):
            whole.index_copy_(2, position, part)
        return self


class Modulation(NamedTuple):
    """Modulation of one block by the class, in the order of its linear layer's outputs."""

    attention_gate: Float[Tensor, "B 1 C"]
    feed_forward_gate: Float[Tensor, "B 1 C"]
    attention_scale: Float[Tensor, "B 1 C"]
    feed_forward_scale: Float[Tensor, "B 1 C"]
    attention_shift: Float[Tensor, "B 1 C"]
    feed_forward_shift: Float[Tensor, "B 1 C"]


def rotary_table(config: TransformerConfig, like: Tensor) -> Rotary:
    """Row 0 is the class token's, zero in cosine and sine, so that its query and key vanish; row s is cell s - 1.

    Of the pairs of features the first half turns with the row of a cell, the second with its column. Device and
    precision (float32 at least) are those of `like`.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    quarter = config.head_width // 4
    numbers = torch.arange(max(quarter, config.grid), dtype=dtype, device=like.device)
    angles = numbers[: config.grid, None] * 10000.0 ** (-4 * numbers[:quarter] / config.head_width)
    square = (config.grid, config.grid, quarter)
    cells = torch.cat([angles[:, None].expand(square), angles[None].expand(square)], dim=-1).flatten(0, 1)
    zero = cells.new_zeros(1, 2 * quarter)
    return Rotary(torch.cat([zero, cells.cos()]), torch.cat([zero, cells.sin()]))


class RMSNorm(nn.Module):
    """x / root mean square, times a scale; computed in float32 at least."""

    kernels = PLAIN

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        """Normalised features in the dtype of x."""
        return self.kernels.rms_norm(x, self.weight, EPSILON)


class Linear(nn.Linear):
    """Dense layer that is fast for the few rows of a sampler, too."""

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        """Features.

        Without gradients and on a CPU, a few float32 rows are multiplied as (W x^T)^T: the library reads the weights
        once then, at the speed of memory, where its x W^T packs them first and takes two to three times as long.
        """
        rows = x.numel() // self.in_features
        if rows > FEW_ROWS or x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_grad_enabled():
            return super().forward(x)
        if torch.is_autocast_enabled("cpu") or self._parameters["bias"] is not None:
            return super().forward(x)
        product = self.weight @ x.reshape(rows, self.in_features).T
        return product.T.contiguous().view(*x.shape[:-1], self.out_features)


def linear(inputs: int, outputs: int, *, bias: bool = False) -> nn.Linear:
    """Dense layer with normal initial weights of deviation 0.02."""
    layer = Linear(inputs, outputs, bias=bias)
    nn.init.normal_(layer.weight, std=DEVIATION)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class Attention(nn.Module):
    """Multi-head attention with a fused projection."""

    kernels = PLAIN

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.heads = config.heads
        self.wqkv = linear(config.width, 3 * config.width)
        self.wo = linear(config.width, config.width)

    def forward(
        self,
        x: Float[Tensor, "B T C"],
        rows: Rotary,
        cache: KeysValues | None = None,
        position: Position = 0,
        visible: Bool[Tensor, "1 T"] | None = None,
    ) -> Float[Tensor, "B T C"]:
        """Causal over whole sequences; with a cache one new position, which attends to the visible ones there."""
        q, k, v = self.wqkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = (self.kernels.rotate(part, *rows) for part in (q, k))
        if cache is None:
            mixed = self.kernels.attention(q, k, v, None, True)
        else:
            keys, values = (part.to(q.dtype) for part in cache.write(k, v, position))
            mixed = self.kernels.attention(q, keys, values, visible, False)
        return self.wo(mixed.transpose(1, 2).flatten(-2))


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    kernels = PLAIN

    def __init__(self, config: TransformerConfig):
        super().__init__()
        width, hidden = config.width, config.feed_forward_width
        self.w1, self.w3, self.w2 = linear(width, hidden), linear(width, hidden), linear(hidden, width)

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        """Features of the same width."""
        return self.w2(self.kernels.swiglu(self.w1(x), self.w3(x)))


class Block(nn.Module):
    """One layer; `adaptive` blocks are modulated by a condition."""

    def __init__(self, config: TransformerConfig, *, adaptive: bool):
        super().__init__()
        self.residual_dropout, self.feed_forward_dropout = config.residual_dropout, config.feed_forward_dropout
        self.attention, self.feed_forward = Attention(config), FeedForward(config)
        self.attention_norm, self.ffn_norm = RMSNorm(config.width), RMSNorm(config.width)
        if adaptive:
            modulate = linear(config.width, 6 * config.width, bias=True)
            self.ada_lin = nn.Sequential(nn.SiLU(), modulate)
            with torch.no_grad():
                gates, others = modulate.weight.split([2 * config.width, 4 * config.width])
                gates.mul_(config.modulation_scale)
                others.mul_(0.5)

    def modulation(self, condition: Float[Tensor, "B C"]) -> Modulation:
        """The six parts that a condition becomes."""
        return Modulation(*self.ada_lin(condition)[:, None].chunk(6, dim=-1))

    def forward(
        self,
        x: Float[Tensor, "B T C"],
        rows: Rotary,
        modulation: Modulation | None = None,
        cache: KeysValues | None = None,
        position: Position = 0,
        visible: Bool[Tensor, "1 T"] | None = None,
        condition: Float[Tensor, "B C"] | None = None,
    ) -> Float[Tensor, "B T C"]:
        """Both residual additions; the modulation is given or, for a whole pass in one call, computed."""
        if condition is not None:
            modulation = self.modulation(condition)
        normed = self.attention_norm(x)
        if modulation is not None:
            normed = normed * (1 + modulation.attention_scale) + modulation.attention_shift
        update = self.attention(normed, rows, cache, position, visible)
        update = F.dropout(update, self.residual_dropout, self.training)
        x = x + (update if modulation is None else modulation.attention_gate * update)
        normed = self.ffn_norm(x)
        if modulation is not None:
            normed = normed * (1 + modulation.feed_forward_scale) + modulation.feed_forward_shift
        update = F.dropout(self.feed_forward(normed), self.feed_forward_dropout, self.training)
        return x + (update if modulation is None else modulation.feed_forward_gate * update)


def compute_with(network: nn.Module, kernels: Kernels) -> None:
    """Have all layers of a network compute with these kernels."""
    for module in network.modules():
        if isinstance(module, RMSNorm | Attention | FeedForward):
            module.kernels = kernels


def run(
    blocks: Iterable[nn.Module],
    x: Float[Tensor, "B T C"],
    rows: Rotary,
    *,
    condition: Float[Tensor, "B C"] | None = None,
    remat: bool = False,
) -> Float[Tensor, "B T C"]:
    """All layers on whole sequences, causally."""
    for block in blocks:
        assert isinstance(block, Block)
        layer = _layer(block, rows, condition)
        x = checkpoint(layer, x, use_reentrant=False) if remat and torch.is_grad_enabled() else layer(x)
    return x


def run_cached(
    blocks: Iterable[nn.Module],
    x: Float[Tensor, "B 1 C"],
    rows: Rotary,
    caches: list[KeysValues],
    position: Position,
    modulations: list[Modulation] | None = None,
) -> Float[Tensor, "B 1 C"]:
    """All layers on one new position, whose keys and values enter the caches."""
    visible = None
    if isinstance(position, Tensor):
        visible = (torch.arange(caches[0].keys.shape[2], device=x.device) <= position)[None]
    for number, (block, cache) in enumerate(zip(blocks, caches, strict=True)):
        modulation = None if modulations is None else modulations[number]
        x = block(x, rows, modulation, cache, position, visible)
    return x


def empty_caches(
    config: TransformerConfig, layers: int, batch: int, positions: int, like: Tensor, dtype: torch.dtype | None = None
) -> list[KeysValues]:
    """Room for all positions of all layers."""
    shape = (batch, config.heads, positions, config.head_width)
    dtype = dtype or like.dtype
    return [KeysValues(like.new_zeros(shape, dtype=dtype), like.new_zeros(shape, dtype=dtype)) for _ in range(layers)]


def _layer(block: Block, rows: Rotary, condition: Tensor | None) -> Callable[[Tensor], Tensor]:
    def layer(x: Tensor) -> Tensor:
        result: Tensor = block(x, rows, condition=condition)
        return result

    return layer
