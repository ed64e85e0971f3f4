"""Cut a tokens x codes computation into blocks that fit a memory budget, and keep its buffers.

Shapes: N tokens, K codes, n tokens in a tile, k codes in a block.

A block's elementwise passes run several times over the same numbers, so on a CPU a block should stay in the cache; an
accelerator wants blocks as large as the budget allows, because each costs some launches. Tiles and blocks are plain
slices: the last ones are simply smaller.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

ReduceMean = Callable[[Tensor], Tensor]
"""Mean of a tensor over the processes that share the batch; differentiable."""

# A block narrower than this leaves matrix units idle; tokens are tiled before blocks get narrower.
_LEAST_BLOCK = 256
# Logits, weights and their gradient are alive together in the backward pass.
_LIVE_BLOCKS = 3
_CACHED_BYTES = 2 * 2**20
"""A CPU block's size: small enough for a last-level cache, large enough that starting threads does not count."""
# Whole rows: fewer tokens than this in a tile leave matrix units idle, and codes would be read too often.
_LEAST_TILE = 64
# Logits and their products with the upstream gradient, of all codes; and what is alive of one block besides.
_LIVE_ROWS = 2
_LIVE_ROW_BLOCKS = 4


class BlockPlan(NamedTuple):
    """A cut of N tokens into tiles of n, and of K codes into blocks of k."""

    tokens: int
    codes: int
    tile: int
    block: int

    def tiles(self) -> Iterator[slice]:
        """Slices of the token axis."""
        return _slices(self.tokens, self.tile)

    def blocks(self) -> Iterator[slice]:
        """Slices of the code axis."""
        return _slices(self.codes, self.block)


def plan_blocks(tokens: int, codes: int, itemsize: int, memory_budget_bytes: int, device: torch.device) -> BlockPlan:
    """Choose the token tile and the code block so that the temporaries of one block stay within the budget.

    Args:
        tokens: number of tokens N, at least 1.
        codes: number of codes K, at least 1.
        itemsize: bytes of one logit.
        memory_budget_bytes: bound on all tokens x codes temporaries together. It does not count arrays of size N x D
            or K x D, which are inputs, outputs and their gradients.
        device: where the computation runs; CPU blocks are cut further, to stay in the cache.

    Raises:
        ValueError: there are no tokens, no codes, or the budget is not positive.
    """
    _check_sizes(tokens, codes, memory_budget_bytes)
    elements = max(1, memory_budget_bytes // (itemsize * _LIVE_BLOCKS))
    least = min(codes, _LEAST_BLOCK)
    tile = _even(tokens, min(tokens, max(1, elements // least)))
    block = min(codes, max(1, elements // tile))
    if device.type == "cpu":
        block = min(block, max(least, _CACHED_BYTES // (itemsize * tile)))
    return BlockPlan(tokens, codes, tile, _even(codes, block))


def plan_rows(
    tokens: int, codes: int, itemsize: int, memory_budget_bytes: int, device: torch.device
) -> BlockPlan | None:
    """Choose a tile of tokens whose logits of all codes stay within the budget; None if it would be too narrow.

    Args and errors are those of `plan_blocks`, which holds when this returns None. The codes are cut into blocks all
    the same, as the unit in which the rows are made and used.
    """
    _check_sizes(tokens, codes, memory_budget_bytes)
    elements = memory_budget_bytes // itemsize
    cached = _CACHED_BYTES // itemsize if device.type == "cpu" else elements
    least = min(codes, _LEAST_BLOCK)
    # Beside the rows themselves, blocks get at most a sixteenth of the budget, or what the narrowest ones need.
    tile = min(tokens, (elements - elements // 16) // (_LIVE_ROWS * codes), max(1, cached // least))
    if tile < 1:
        return None
    tile = _even(tokens, tile)
    block = min(codes, max(least, min(cached, elements // (16 * _LIVE_ROW_BLOCKS)) // tile))
    block = _even(codes, block)
    tile = min(tile, elements // (_LIVE_ROWS * codes + _LIVE_ROW_BLOCKS * block))
    if tile < min(tokens, _LEAST_TILE):
        return None
    return BlockPlan(tokens, codes, _even(tokens, tile), block)


def _check_sizes(tokens: int, codes: int, memory_budget_bytes: int) -> None:
    if tokens < 1 or codes < 1:
        raise ValueError(f"found {tokens} tokens and {codes} codes; a quantizer needs at least one of each")
    if memory_budget_bytes < 1:
        raise ValueError(f"memory_budget_bytes is {memory_budget_bytes}; give a positive number of bytes")


class Buffers:
    """Reused memory of the tokens x codes temporaries, so that no block allocates."""

    def __init__(self, plan: BlockPlan, like: Tensor, dtype: torch.dtype, count: int):
        self._flat = [like.new_empty(plan.tile * plan.block, dtype=dtype) for _ in range(count)]

    def view(self, index: int, tokens: int, codes: int) -> Float[Tensor, "n k"]:
        """Buffer number `index` with the shape of one block."""
        return self._flat[index][: tokens * codes].view(tokens, codes)


def row_argmax(x: Float[Tensor, "n k"]) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
    """Largest value of each row and its lowest index, on every device.

    In two levels, so that the search for the index touches one group of columns per row instead of all.
    """
    rows, columns = x.shape
    group = 64
    if columns % group or columns <= group:
        maximum = x.amax(dim=1)
        return maximum, _first(x, maximum)
    grouped = x.view(rows, columns // group, group)
    maxima = grouped.amax(dim=2)
    maximum = maxima.amax(dim=1)
    winner = _first(maxima, maximum)
    candidates = grouped[torch.arange(rows, device=x.device), winner]
    return maximum, winner * group + _first(candidates, maximum)


def exp_(exponents: Float[Tensor, "n k"], out: Tensor | None = None) -> Float[Tensor, "n k"]:
    """Exponential, of numbers that are first bounded below in place so that no result is subnormal.

    Such a result is nothing next to the terms near 1 that it is added to, but takes a CPU twenty times as long. Bounded
    `exponents` also stay finite, so that their product with the result is never not-a-number.
    """
    exponents.clamp_(min=least_exponent(exponents.dtype))
    return torch.exp(exponents, out=exponents if out is None else out)


def least_exponent(dtype: torch.dtype) -> float:
    """The least number whose exponential is not subnormal."""
    return math.log(torch.finfo(dtype).tiny) + 1


def active_rows(exponents: Float[Tensor, " n"]) -> Int[Tensor, " m"] | None:
    """Rows of a block that have anything to add, from each row's largest exponent; None stands for all of them.

    A sharp softmax leaves most codes of most tokens with nothing, and a CPU then skips whole rows of a block. Counting
    them would stall an accelerator, which therefore computes every row.
    """
    if exponents.device.type != "cpu":
        return None
    rows = (~(exponents < least_exponent(exponents.dtype))).nonzero().flatten()
    return rows if 2 * rows.shape[0] <= exponents.shape[0] else None


def in_full_precision(tensor: Tensor) -> AbstractContextManager[None]:
    """Switch autocast off: the matrix products of a quantizer keep the precision of their operands."""
    return torch.autocast(device_type=tensor.device.type, enabled=False)


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype of logits: at least float32, float64 when an input is."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _first(x: Float[Tensor, "n k"], value: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Index of the first column that equals `value`; the last column where none does (not-a-number)."""
    columns = torch.arange(x.shape[1], device=x.device)
    return torch.where(x == value[:, None], columns, x.shape[1] - 1).amin(dim=1)


def _even(total: int, part: int) -> int:
    """The smallest part that needs no more parts than `part` does, rounded up to a multiple of 64 where that fits."""
    even = -(-total // -(-total // part))
    aligned = -(-even // 64) * 64
    return aligned if aligned <= part else even


def _slices(total: int, part: int) -> Iterator[slice]:
    return (slice(start, min(start + part, total)) for start in range(0, total, part))
