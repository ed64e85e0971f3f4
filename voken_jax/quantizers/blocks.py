"""Cut a tokens x codes computation into blocks that fit a memory budget.

Shapes: N tokens, K codes, D code dimension, n tokens in a tile, k codes in a block.

Codes are walked in blocks of one static size. The last block starts at K - k instead of running over the end, so a
codebook of any size is read in place, without a padded copy; `fresh` marks the codes that no earlier block has seen.
Tokens are few next to codes, so they are padded and cut into tiles, and only when a block of the least useful width
would not fit otherwise. `plan_rows` asks first whether a tile with all its codes fits: see `rows`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

# A block narrower than this leaves matrix units idle; tokens are tiled before blocks get narrower.
_LEAST_BLOCK = 256
# Logits, two probabilities and their product with a gradient are alive together in the backward pass.
_LIVE_BLOCKS = 4
_ALIGNMENT = 128
_TILE_ALIGNMENT = 16
# Rows of a block that are reduced together before the groups are.
_GROUP = 32
# On a CPU a block should stay in cache; on an accelerator it should fill the device and hide kernel launches.
_CPU_BUDGET = 16 * 2**20
_ACCELERATOR_BUDGET = 512 * 2**20
# Whole rows: fewer tokens than this in a tile leave matrix units idle, and codes would be read too often.
_LEAST_TILE = 64
# Logits and their products with the upstream gradient, of all codes; and what is alive of one block besides.
_LIVE_ROWS = 2
_CPU_ROWS_BUDGET = 288 * 2**20
_CACHED_BYTES = 2**19
"""A CPU block of whole rows: its elementwise passes should find it in a core's cache."""


class BlockPlan(NamedTuple):
    """A static cut of N tokens and K codes; hashable, so it may key a compiled function."""

    tokens: int
    codes: int
    tile: int
    tiles: int
    block: int
    blocks: int

    @property
    def ragged(self) -> bool:
        """True if the last block overlaps the one before it."""
        return self.block * self.blocks != self.codes


def plan_blocks(tokens: int, codes: int, itemsize: int, memory_budget_bytes: int | None) -> BlockPlan:
    """Choose the token tile and the code block so that the arrays of one block stay within the budget.

    Args:
      tokens: number of tokens N, at least 1.
      codes: number of codes K, at least 1.
      itemsize: bytes of one logit.
      memory_budget_bytes: bound on all tokens x codes temporaries together. It does not count arrays of size N x D
        or K x D, which are inputs, outputs and their gradients. None: 16 MiB on a CPU, 512 MiB on an accelerator.

    Raises:
      ValueError: if there are no tokens, no codes, or the budget is not positive.
    """
    if memory_budget_bytes is None:
        memory_budget_bytes = _CPU_BUDGET if jax.default_backend() == "cpu" else _ACCELERATOR_BUDGET
    _check_sizes(tokens, codes, memory_budget_bytes)
    elements = max(1, memory_budget_bytes // (itemsize * _LIVE_BLOCKS))
    tile = min(tokens, max(1, elements // min(codes, _LEAST_BLOCK)))
    tiles = -(-tokens // tile)
    tile = -(-tokens // tiles)
    block = _even_block(codes, min(codes, max(1, elements // tile)))
    return BlockPlan(tokens, codes, tile, tiles, block, -(-codes // block))


def plan_rows(tokens: int, codes: int, itemsize: int, memory_budget_bytes: int | None) -> BlockPlan | None:
    """Choose a tile of tokens whose logits of all codes stay within the budget; None if it would be too narrow.

    Args and errors are those of `plan_blocks`, which holds when this returns None; without a budget, a CPU gets
    288 MiB. The codes are cut into blocks all the same, as the unit in which the rows are made and used.
    """
    on_cpu = jax.default_backend() == "cpu"
    if memory_budget_bytes is None:
        memory_budget_bytes = _CPU_ROWS_BUDGET if on_cpu else _ACCELERATOR_BUDGET
    _check_sizes(tokens, codes, memory_budget_bytes)
    elements = memory_budget_bytes // itemsize
    cached = _CACHED_BYTES // itemsize if on_cpu else elements
    # Beside the rows themselves, blocks get at most a sixteenth of the budget.
    tile = min(tokens, (elements - elements // 16) // (_LIVE_ROWS * codes), max(1, cached // _LEAST_BLOCK))
    if tile < 1:
        return None
    tile = _even_tile(tokens, tile)
    block = max(_ALIGNMENT, min(cached, elements // (16 * _LIVE_BLOCKS)) // tile // _ALIGNMENT * _ALIGNMENT)
    block = _even_block(codes, min(codes, block))
    blocks = -(-codes // block)
    tile = min(tile, elements // (block * (_LIVE_ROWS * blocks + _LIVE_BLOCKS)))
    if tile < min(tokens, _LEAST_TILE):
        return None
    tile = _even_tile(tokens, tile)
    return BlockPlan(tokens, codes, tile, -(-tokens // tile), block, blocks)


def _check_sizes(tokens: int, codes: int, memory_budget_bytes: int) -> None:
    if tokens < 1 or codes < 1:
        raise ValueError(f"found {tokens} tokens and {codes} codes; a quantizer needs at least one of each")
    if memory_budget_bytes < 1:
        raise ValueError(f"memory_budget_bytes is {memory_budget_bytes}; give a positive number of bytes")


def _even_block(codes: int, block: int) -> int:
    """Blocks of nearly one size, no larger than `block`, aligned where that fits."""
    even = -(-codes // -(-codes // block))
    aligned = -(-even // _ALIGNMENT) * _ALIGNMENT
    return aligned if aligned <= block else even


def _even_tile(tokens: int, tile: int) -> int:
    """Tiles of nearly one size, no larger than `tile`, aligned to vector registers where that fits."""
    aligned = tile // _TILE_ALIGNMENT * _TILE_ALIGNMENT
    tile = aligned if tile < tokens and aligned else tile
    even = -(-tokens // -(-tokens // tile))
    padded = -(-even // _TILE_ALIGNMENT) * _TILE_ALIGNMENT
    return padded if even < tokens and padded <= tile else even


def to_tiles(x: Float[Array, "N ..."], plan: BlockPlan) -> Float[Array, "tiles n ..."]:
    """Cut the token axis into zero-padded tiles; tile t holds tokens t, t + tiles, t + 2 tiles, ...

    The stride keeps every tile spread over all devices when the tokens themselves are sharded.
    """
    if plan.tiles == 1:
        return x[None]
    padded = jnp.pad(x, [(0, plan.tile * plan.tiles - plan.tokens)] + [(0, 0)] * (x.ndim - 1))
    return padded.reshape(plan.tile, plan.tiles, *x.shape[1:]).swapaxes(0, 1)


def from_tiles(x: Array, plan: BlockPlan) -> Array:
    """Undo `to_tiles` on an array of shape (tiles, n, ...): returns (N, ...)."""
    if plan.tiles == 1:
        return x[0]
    return x.swapaxes(0, 1).reshape(plan.tile * plan.tiles, *x.shape[2:])[: plan.tokens]


def token_weights(plan: BlockPlan, dtype: Any) -> Float[Array, "tiles n"] | None:
    """1 for tokens, 0 for padding, tiled; None when there is no padding."""
    if plan.tile * plan.tiles == plan.tokens:
        return None
    return to_tiles(jnp.ones((plan.tokens,), dtype), plan)


def map_tiles(function: Callable[..., Any], *arguments: Any) -> Any:
    """`lax.map` over the leading axis of every argument, without a loop when there is one tile."""
    if jax.tree.leaves(arguments)[0].shape[0] == 1:
        result = function(*jax.tree.map(lambda x: x[0], arguments))
        return jax.tree.map(lambda x: x[None], result)
    return lax.map(lambda packed: function(*packed), arguments)


def sum_tiles(function: Callable[..., Any], *arguments: Any) -> Any:
    """Sum of `function` over the leading axis of every argument, holding one term and the sum."""
    first = jax.tree.map(lambda x: x[0], arguments)
    if jax.tree.leaves(arguments)[0].shape[0] == 1:
        return function(*first)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(function, *first))

    def step(total: Any, packed: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, function(*packed)), None

    return lax.scan(step, zeros, arguments)[0]


class CodeBlock(NamedTuple):
    """One block of the codebook."""

    start: Int[Array, ""]
    codes: Float[Array, "k D"]
    fresh: Bool[Array, "k"] | None


def block_start(index: Int[Array, ""], plan: BlockPlan) -> Int[Array, ""]:
    """Number of the first code of block number `index`."""
    return jnp.minimum(index * plan.block, plan.codes - plan.block).astype(jnp.int32)


def read_block(codebook: Float[Array, "K D"], index: Int[Array, ""], plan: BlockPlan) -> CodeBlock:
    """Block number `index`; `fresh` is None when blocks never overlap."""
    start = block_start(index, plan)
    codes = lax.dynamic_slice_in_dim(codebook, start, plan.block)
    fresh = start + jnp.arange(plan.block, dtype=jnp.int32) >= index * plan.block if plan.ragged else None
    return CodeBlock(start, codes, fresh)


def add_block(total: Float[Array, "K ..."], start: Int[Array, ""], update: Float[Array, "k ..."]) -> Array:
    """Add to the rows of one block in place (XLA reuses the buffer of a loop carry)."""
    current = lax.dynamic_slice_in_dim(total, start, update.shape[0])
    return lax.dynamic_update_slice_in_dim(total, current + update, start, axis=0)


def column_argmax(x: Float[Array, "k n"]) -> tuple[Float[Array, "n"], Int[Array, "n"]]:
    """Largest value of each column and its lowest row number.

    In two levels: a plain maximum over groups vectorises everywhere, an argmax over the whole column does not (ten
    times slower on a CPU); only the winning group is searched.
    """
    rows, columns = x.shape
    group = 64
    if rows % group or rows <= group:
        return x.max(axis=0), x.argmax(axis=0).astype(jnp.int32)
    grouped = x.reshape(rows // group, group, columns)
    winner = grouped.max(axis=1).argmax(axis=0)
    candidates = jnp.take_along_axis(grouped, winner[None, None], axis=0)[0]
    return candidates.max(axis=0), (winner * group + candidates.argmax(axis=0)).astype(jnp.int32)


def column_sum(x: Float[Array, "k n"]) -> Float[Array, "n"]:
    """Sum of each column, in two levels: XLA spreads the first over CPU threads, but not a sum of few columns."""
    rows, columns = x.shape
    if rows % _GROUP or rows <= _GROUP:
        return x.sum(axis=0)
    return lax.optimization_barrier(x.reshape(rows // _GROUP, _GROUP, columns).sum(axis=1)).sum(axis=0)
