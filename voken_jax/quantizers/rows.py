"""The soft assignment of tokens to codes, a tile of tokens with all its codes at a time.

Shapes: N tokens, K codes, D code dimension; tiles x n = N tokens in tiles; blocks x k >= K codes in blocks.

Where the logits of a tile fit the memory budget, they need not be made twice in one pass: the forward pass takes the
winner, the normaliser and entropy of q and the tile's part of the average of q from one product. The backward pass
makes logits and their products with the upstream gradient once, reduces them to what couples the codes of a token, and
turns them into the gradients. That is five products of size N x K x D where `streaming` needs seven, and the residuals
are O(N + K): no expectation is kept. Rows are stored block by block, because passes over a block stay in the cache.

For one device; `streaming` is the form that also runs on a shard of the codes.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from voken_jax.quantizers import blocks
from voken_jax.quantizers.assignment import (
    Assignment,
    Cotangents,
    Settings,
    add_rows,
    compute_dtype,
    logits_of,
    lookup,
    mask_seen,
    matmul,
    shifted,
    transposed,
)
from voken_jax.quantizers.blocks import BlockPlan, column_sum
from voken_jax.quantizers.entropy import average_entropy, average_entropy_constant, average_entropy_slope


class RowResiduals(NamedTuple):
    """Residuals of the backward pass besides z and the codebook: O(N + K); the last two are empty without entropy."""

    indices: Int[Array, "N"]
    maximum: Float[Array, "tiles n"]
    sharp_log_mass: Float[Array, "tiles n"]
    slope: Float[Array, "K"]


class _Tile(NamedTuple):
    """Values of the forward pass for each token of a tile."""

    maximum: Float[Array, "n"]
    winner: Int[Array, "n"]
    sharp_log_mass: Float[Array, "n"]
    entropy: Float[Array, "n"]


def make_plan(z: Float[Array, "N D"], codebook: Float[Array, "K D"], settings: Settings) -> BlockPlan | None:
    """The cut for logits of `compute_dtype`; None where whole rows do not fit the budget."""
    itemsize = jnp.dtype(compute_dtype(z, codebook)).itemsize
    return blocks.plan_rows(z.shape[0], codebook.shape[0], itemsize, settings.memory_budget_bytes)


def forward(
    z: Float[Array, "N D"], codebook: Float[Array, "K D"], settings: Settings, plan: BlockPlan
) -> tuple[Assignment, RowResiduals]:
    """The values, and what `backward` needs."""
    dtype = compute_dtype(z, codebook)
    weights = blocks.token_weights(plan, dtype)
    weights = jnp.ones((plan.tiles, plan.tile), dtype) if weights is None else weights

    def step(mass: Array, packed: tuple[Array, Array]) -> tuple[Array, _Tile]:
        return _forward_tile(*packed, mass, codebook, settings, plan)

    start = jnp.zeros((plan.codes if settings.use_entropy else 0,), dtype)
    mass, found = lax.scan(step, start, (blocks.to_tiles(z, plan), weights))
    indices, zero = blocks.from_tiles(found.winner, plan), jnp.zeros((), dtype)
    result = Assignment(lookup(codebook, indices), indices, zero, zero)
    slope = mass
    if settings.use_entropy:
        average = mass / plan.tokens
        slope = average_entropy_slope(average)
        result = result._replace(
            sample_entropy=blocks.from_tiles(found.entropy, plan).mean(),
            average_entropy=average_entropy(average) + jnp.asarray(average_entropy_constant(), dtype),
        )
    return result, RowResiduals(indices, found.maximum, found.sharp_log_mass, slope)


def _forward_tile(
    tile: Float[Array, "n D"],
    weight: Float[Array, "n"],
    mass: Float[Array, "K"],
    codebook: Float[Array, "K D"],
    settings: Settings,
    plan: BlockPlan,
) -> tuple[Float[Array, "K"], _Tile]:
    """Search one tile and add its tokens' shares q to `mass`."""
    dtype = compute_dtype(tile, codebook)
    sharp = settings.use_entropy
    numbers = jnp.arange(plan.blocks)

    def search(best: tuple[Array, Array], number: Array) -> tuple[tuple[Array, Array], Any]:
        block = blocks.read_block(codebook, number, plan)
        logits = mask_seen(logits_of(block.codes, tile), block, -jnp.inf)
        maximum, winner = blocks.column_argmax(logits)
        winner = jnp.where(maximum > best[0], block.start + winner, best[1])
        return (jnp.maximum(maximum, best[0]), winner), logits if sharp else None

    count = tile.shape[0]
    start = (jnp.full((count,), jnp.finfo(dtype).min), jnp.zeros((count,), jnp.int32))
    (maximum, winner), logits = lax.scan(search, start, numbers)
    zeros = jnp.zeros((count,), dtype)
    if not sharp:
        return mass, _Tile(maximum, winner, zeros[:0], zeros[:0])

    def normalise(sums: tuple[Array, Array], logits: Array) -> tuple[tuple[Array, Array], None]:
        exponents = shifted(logits, maximum, settings.temperature)
        terms = jnp.exp(exponents)
        return (sums[0] + column_sum(terms), sums[1] + column_sum(terms * exponents)), None

    (sharp_mass, moment), _ = lax.scan(normalise, (zeros, zeros), logits)
    log_mass = jnp.log(sharp_mass)

    def accumulate(mass: Array, packed: tuple[Array, Array]) -> tuple[Array, None]:
        number, logits = packed
        # Codes that an earlier block has seen have logits of minus infinity and a share of zero.
        shares = jnp.exp(shifted(logits, maximum, settings.temperature) - log_mass)
        return blocks.add_block(mass, blocks.block_start(number, plan), matmul(shares, weight)), None

    mass, _ = lax.scan(accumulate, mass, (numbers, logits))
    return mass, _Tile(maximum, winner, log_mass, log_mass - moment / sharp_mass)


class _Given(NamedTuple):
    """One tile of the backward pass; sample and average weigh the two entropies, 0 for padding."""

    tile: Float[Array, "n D"]
    upstream: Float[Array, "n D"]
    maximum: Float[Array, "n"]
    sharp_log_mass: Float[Array, "n"]
    sample: Float[Array, "n"]
    average: Float[Array, "n"]


class _Sums(NamedTuple):
    """Sums over the codes of a token, with w = exp(logit - maximum): of w, of w <G, e> and of q times its factor."""

    mass: Float[Array, "n"]
    pull: Float[Array, "n"]
    offset: Float[Array, "n"]


def backward(
    z: Float[Array, "N D"],
    codebook: Float[Array, "K D"],
    saved: RowResiduals,
    given: Cotangents,
    settings: Settings,
    plan: BlockPlan,
) -> tuple[Float[Array, "N D"], Float[Array, "K D"]]:
    """Gradients of the soft assignment with respect to z and the codebook, see `streaming.backward`.

    The gradient of a logit is p (<G, e_k> - pull) + q (factor - offset), where factor = average * slope_k
    - sample * log q, pull is the mean of <G, e> under p and offset that of the factor under q.
    """
    dtype = compute_dtype(z, codebook)
    weights = blocks.token_weights(plan, dtype)
    weights = jnp.ones((plan.tiles, plan.tile), dtype) if weights is None else weights
    weights = weights / (plan.tokens * settings.temperature)
    tiles = _Given(
        blocks.to_tiles(z, plan),
        blocks.to_tiles(given.soft, plan),
        saved.maximum,
        saved.sharp_log_mass,
        weights * given.sample_entropy,
        weights * given.average_entropy,
    )

    def step(dcodebook: Array, tile: _Given) -> tuple[Array, Array]:
        return _backward_tile(tile, dcodebook, codebook, saved.slope, settings, plan)

    dcodebook, dz = lax.scan(step, jnp.zeros(codebook.shape, dtype), tiles)
    dcodebook = add_rows(dcodebook, saved.indices, given.soft + given.hard)
    return blocks.from_tiles(dz, plan).astype(z.dtype), dcodebook.astype(codebook.dtype)


def _backward_tile(
    given: _Given,
    dcodebook: Float[Array, "K D"],
    codebook: Float[Array, "K D"],
    slope: Float[Array, "K"],
    settings: Settings,
    plan: BlockPlan,
) -> tuple[Float[Array, "K D"], Float[Array, "n D"]]:
    """Add one tile's gradient to that of the codebook, and return that of its tokens."""
    dtype = dcodebook.dtype
    sharp = settings.use_entropy
    numbers = jnp.arange(plan.blocks)
    tokens = given.tile.astype(dtype)

    def shares(logits: Array, number: Array) -> tuple[Array, Array]:
        log_share = shifted(logits, given.maximum, settings.temperature) - given.sharp_log_mass
        block_slope = lax.dynamic_slice_in_dim(slope, blocks.block_start(number, plan), plan.block)
        return jnp.exp(log_share), given.average * block_slope[:, None] - given.sample * log_share

    def reduce(sums: _Sums, number: Array) -> tuple[_Sums, tuple[Array, Array]]:
        block = blocks.read_block(codebook, number, plan)
        logits = mask_seen(logits_of(block.codes, given.tile), block, -jnp.inf)
        products = logits_of(block.codes.astype(dtype), given.upstream)
        weights = jnp.exp(logits - given.maximum)
        mass, pull = sums.mass + column_sum(weights), sums.pull + column_sum(weights * products)
        offset = sums.offset
        if sharp:
            share, factor = shares(logits, number)
            offset = offset + column_sum(share * factor)
        return _Sums(mass, pull, offset), (logits, products)

    zeros = jnp.zeros((tokens.shape[0],), dtype)
    sums, rows = lax.scan(reduce, _Sums(zeros, zeros, zeros), numbers)
    log_normaliser, pull = given.maximum + jnp.log(sums.mass), sums.pull / sums.mass

    def spread(
        carry: tuple[Array, Array], packed: tuple[Array, tuple[Array, Array]]
    ) -> tuple[tuple[Array, Array], None]:
        dtokens, dcodebook = carry
        number, (logits, products) = packed
        codes = blocks.read_block(codebook, number, plan).codes.astype(dtype)
        gradient = jnp.exp(logits - log_normaliser) * (products - pull)
        if sharp:
            share, factor = shares(logits, number)
            gradient += share * (factor - sums.offset)
        start = blocks.block_start(number, plan)
        dcodebook = blocks.add_block(dcodebook, start, matmul(gradient, tokens))
        return (dtokens + matmul(transposed(gradient), codes), dcodebook), None

    (dtokens, dcodebook), _ = lax.scan(spread, (jnp.zeros_like(tokens), dcodebook), (numbers, rows))
    return dcodebook, dtokens
