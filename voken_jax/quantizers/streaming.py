"""The soft assignment of tokens to codes, streamed: what `ibq` differentiates, on one device or on a shard of codes.

Shapes: N tokens, K codes, D code dimension; tiles x n = N tokens in tiles; k codes in a block.

With logits l = z E^T, p = softmax(l) and q = softmax(l / temperature), the forward pass needs per token the winner,
both normalisers, the expectation p E (the backward pass needs it) and the entropy of q, and per code the average of q.
One pass over blocks of codes with running maxima (online softmax) gives the first, a second pass the average. The
backward pass recomputes the logits of a block and emits that block's codebook gradient. Nothing of size N x K exists.

Every function runs on local arrays. `Collectives` names the mesh axes over which partial results are combined; with no
names nothing is exchanged, so the sharded quantizer is this same code inside `shard_map`.
"""

from typing import NamedTuple

import jax
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
    mean,
    shifted,
    total,
    transposed,
)
from voken_jax.quantizers.blocks import BlockPlan, CodeBlock, column_sum
from voken_jax.quantizers.entropy import average_entropy, average_entropy_constant, average_entropy_slope

_NO_CODE = jnp.iinfo(jnp.int32).max


class _Search(NamedTuple):
    """Running state of one tile over the blocks of codes: maxima, and sums relative to them."""

    maximum: Float[Array, "n"]
    winner: Int[Array, "n"]
    mass: Float[Array, "n"]
    expectation: Float[Array, "D n"]
    sharp_mass: Float[Array, "n"]
    sharp_moment: Float[Array, "n"]


class Residuals(NamedTuple):
    """Residuals of the backward pass besides z and the codebook: O(N D + K)."""

    indices: Int[Array, "tiles n"]
    maximum: Float[Array, "tiles n"]
    log_mass: Float[Array, "tiles n"]
    expectation: Float[Array, "tiles D n"]
    sharp_log_mass: Float[Array, "tiles n"]
    entropy: Float[Array, "tiles n"]
    slope_mean: Float[Array, "tiles n"]
    slope: Float[Array, "K"]


def make_plan(z: Float[Array, "N D"], codebook: Float[Array, "K D"], memory_budget_bytes: int | None) -> BlockPlan:
    """Cut N tokens and K codes for logits of `compute_dtype`."""
    itemsize = jnp.dtype(compute_dtype(z, codebook)).itemsize
    return blocks.plan_blocks(z.shape[0], codebook.shape[0], itemsize, memory_budget_bytes)


def search(
    z: Float[Array, "n D"], codebook: Float[Array, "K D"], plan: BlockPlan, settings: Settings, soft: bool
) -> _Search:
    """One pass of one tile over all blocks; without `soft` no expectation is formed."""
    dtype = compute_dtype(z, codebook)
    sharp = settings.use_entropy

    def step(state: _Search, number: Array) -> tuple[_Search, None]:
        block = blocks.read_block(codebook, number, plan)
        logits = mask_seen(logits_of(block.codes, z), block, -jnp.inf)
        block_maximum, block_winner = blocks.column_argmax(logits)
        maximum = jnp.maximum(state.maximum, block_maximum)
        winner = jnp.where(block_maximum > state.maximum, block.start + block_winner, state.winner)
        if soft:
            scale = jnp.exp(state.maximum - maximum)
            weights = jnp.exp(logits - maximum)
            state = state._replace(
                mass=state.mass * scale + column_sum(weights),
                expectation=state.expectation * scale + matmul(transposed(block.codes), weights),
            )
        if sharp:
            shift = shifted(state.maximum, maximum, settings.temperature)
            exponents = shifted(logits, maximum, settings.temperature)
            weights = jnp.exp(exponents)
            mass, moment = _rescale(state.sharp_mass, state.sharp_moment, shift)
            state = state._replace(
                sharp_mass=mass + column_sum(weights), sharp_moment=moment + column_sum(weights * exponents)
            )
        return state._replace(maximum=maximum, winner=winner), None

    tokens, dim = z.shape
    zeros = jnp.zeros((tokens,), dtype)
    start = _Search(
        maximum=jnp.full((tokens,), jnp.finfo(dtype).min),
        winner=jnp.zeros((tokens,), jnp.int32),
        mass=zeros,
        expectation=jnp.zeros((dim if soft else 0, tokens), dtype),
        sharp_mass=zeros,
        sharp_moment=zeros,
    )
    return lax.scan(step, start, jnp.arange(plan.blocks))[0]


def _rescale(mass: Array, moment: Array, shift: Array) -> tuple[Array, Array]:
    """Move sum e^u and sum u e^u to a maximum that is `-shift` higher."""
    factor = jnp.exp(shift)
    return mass * factor, (moment + shift * mass) * factor


def _combine(state: _Search, soft: bool, settings: Settings, plan: BlockPlan) -> _Search:
    """Combine the searches of all shards of the codebook: one exchange of O(N D) numbers."""
    axes = settings.collectives.codes
    if not axes:
        return state
    offset = lax.axis_index(axes) * plan.codes
    maximum = lax.pmax(state.maximum, axes)
    winners = jnp.where(state.maximum == maximum, state.winner + offset, _NO_CODE)
    shift = shifted(state.maximum, maximum, settings.temperature)
    sums = list(_rescale(state.sharp_mass, state.sharp_moment, shift)) if settings.use_entropy else []
    if soft:
        scale = jnp.exp(state.maximum - maximum)
        sums += [state.mass * scale, state.expectation * scale]
    sums = list(lax.psum(tuple(sums), axes))
    state = state._replace(maximum=maximum, winner=lax.pmin(winners, axes))
    if settings.use_entropy:
        state = state._replace(sharp_mass=sums.pop(0), sharp_moment=sums.pop(0))
    if soft:
        state = state._replace(mass=sums.pop(0), expectation=sums.pop(0))
    return state


def forward(z: Float[Array, "N D"], codebook: Float[Array, "K D"], settings: Settings) -> Assignment:
    """The values alone, for evaluation: no expectation and no slopes."""
    return _forward(z, codebook, settings, soft=False)[0]


def forward_with_residuals(
    z: Float[Array, "N D"], codebook: Float[Array, "K D"], settings: Settings
) -> tuple[Assignment, Residuals]:
    """The values, and what `backward` needs."""
    return _forward(z, codebook, settings, soft=True)


def _forward(z: Array, codebook: Array, settings: Settings, soft: bool) -> tuple[Assignment, Residuals]:
    plan = make_plan(z, codebook, settings.memory_budget_bytes)
    tiles = blocks.to_tiles(z, plan)
    found = blocks.map_tiles(
        lambda tile: _combine(search(tile, codebook, plan, settings, soft), soft, settings, plan), tiles
    )
    indices = blocks.from_tiles(found.winner, plan)
    hard = lookup(codebook, indices, settings.collectives.codes)
    zero = jnp.zeros((), compute_dtype(z, codebook))
    result = Assignment(hard, indices, zero, zero)
    residuals = Residuals(
        found.winner, found.maximum, jnp.log(found.mass), found.expectation / found.mass[:, None], *(zero,) * 4
    )
    if settings.use_entropy:
        sharp_log_mass = jnp.log(found.sharp_mass)
        entropy = sharp_log_mass - found.sharp_moment / found.sharp_mass
        residuals = residuals._replace(sharp_log_mass=sharp_log_mass, entropy=entropy)
        value, slope, slope_mean = _average_pass(tiles, codebook, residuals, plan, settings, soft)
        residuals = residuals._replace(slope=slope, slope_mean=slope_mean)
        sample = mean(blocks.from_tiles(entropy, plan).mean(), settings.collectives.tokens)
        result = result._replace(sample_entropy=sample, average_entropy=value)
    return result, residuals


def _average_pass(
    tiles: Float[Array, "tiles n D"],
    codebook: Float[Array, "K D"],
    saved: Residuals,
    plan: BlockPlan,
    settings: Settings,
    slopes: bool,
) -> tuple[Array, Array, Array]:
    """Second pass: the entropy of the average of q, its slope per code and the slope's mean under each token's q."""
    axes = settings.collectives
    weights = blocks.token_weights(plan, saved.maximum.dtype)

    def step(carry: tuple[Array, Array, Array], number: Array) -> tuple[tuple[Array, Array, Array], None]:
        entropy, slope, slope_mean = carry
        block = blocks.read_block(codebook, number, plan)

        def sharp(tile: Array, maximum: Array, log_mass: Array) -> Array:
            exponents = shifted(logits_of(block.codes, tile), maximum, settings.temperature)
            return mask_seen(jnp.exp(exponents - log_mass), block)

        def mass(tile: Array, maximum: Array, log_mass: Array, weight: Array | None = None) -> Array:
            share = sharp(tile, maximum, log_mass)
            return share.sum(axis=1) if weight is None else share @ weight

        per_token = (tiles, saved.maximum, saved.sharp_log_mass)
        average = blocks.sum_tiles(mass, *per_token, *(() if weights is None else (weights,))) / plan.tokens
        average = mean(average, axes.average)
        entropy += average_entropy(average)
        if slopes:
            block_slope = average_entropy_slope(average)
            slope = blocks.add_block(slope, block.start, block_slope)
            # With one tile the compiler sees the same shares twice and computes them once.
            slope_mean += blocks.map_tiles(lambda *token: matmul(block_slope, sharp(*token)), *per_token)
        return (entropy, slope, slope_mean), None

    dtype = saved.maximum.dtype
    start = (jnp.zeros((), dtype), jnp.zeros((plan.codes,), dtype), jnp.zeros_like(saved.maximum))
    (entropy, slope, slope_mean), _ = lax.scan(step, start, jnp.arange(plan.blocks))
    entropy = mean(total(entropy, axes.codes), axes.tokens) + jnp.asarray(average_entropy_constant(), dtype)
    return entropy, slope, total(slope_mean, axes.codes)


def backward(
    z: Float[Array, "N D"], codebook: Float[Array, "K D"], saved: Residuals, given: Cotangents, settings: Settings
) -> tuple[Float[Array, "N D"], Float[Array, "K D"]]:
    """Gradients of the soft assignment with respect to z and the codebook, one block of codes at a time.

    `given.soft` is the gradient of o E with o = h - stop_gradient(p) + p: it reaches the codebook through the rows of
    h, and z and every code through p. `given.hard` is the gradient of h E and reaches the winners' rows alone.
    """
    plan = make_plan(z, codebook, settings.memory_budget_bytes)
    axes = settings.collectives
    dtype = compute_dtype(z, codebook)
    tiles, upstream = blocks.to_tiles(z, plan), blocks.to_tiles(given.soft, plan)
    terms = _token_terms(upstream, saved, given, plan, settings)

    def step(carry: tuple[Array, Array], number: Array) -> tuple[tuple[Array, Array], None]:
        dz, dcodebook = carry
        block = blocks.read_block(codebook, number, plan)
        slope = lax.dynamic_slice_in_dim(saved.slope, block.start, plan.block) if settings.use_entropy else None

        def tile_step(update: Array, packed: tuple[Array, Array, _TokenTerms]) -> tuple[Array, Array]:
            gradient = _logit_gradient(block, slope, *packed, settings)
            return update + matmul(gradient, packed[0].astype(dtype)), matmul(transposed(block.codes), gradient)

        zeros = jnp.zeros((plan.block, codebook.shape[1]), dtype)
        if plan.tiles == 1:
            codes_update, update = tile_step(zeros, jax.tree.map(lambda x: x[0], (tiles, upstream, terms)))
            dz += update[None]
        else:
            codes_update, update = lax.scan(tile_step, zeros, (tiles, upstream, terms))
            dz += update
        return (dz, blocks.add_block(dcodebook, block.start, codes_update)), None

    start = (jnp.zeros((plan.tiles, z.shape[1], plan.tile), dtype), jnp.zeros(codebook.shape, dtype))
    (dz, dcodebook), _ = lax.scan(step, start, jnp.arange(plan.blocks))
    rows = blocks.from_tiles(saved.indices, plan)
    dcodebook = add_rows(dcodebook, rows, given.soft + given.hard, axes.codes)
    dz = total(blocks.from_tiles(dz.swapaxes(1, 2), plan), axes.codes)
    return dz.astype(z.dtype), total(dcodebook, axes.tokens).astype(codebook.dtype)


class _TokenTerms(NamedTuple):
    """Per-token numbers of the backward pass.

    The gradient of a logit is p (<G, e_k> - pull) + q (average * slope_k - sample * log q - offset).
    """

    log_normaliser: Float[Array, "tiles n"]
    pull: Float[Array, "tiles n"]
    maximum: Float[Array, "tiles n"]
    sharp_log_mass: Float[Array, "tiles n"]
    sample: Float[Array, "tiles n"]
    average: Float[Array, "tiles n"]
    offset: Float[Array, "tiles n"]


def _logit_gradient(
    block: CodeBlock,
    slope: Float[Array, "k"] | None,
    tile: Float[Array, "n D"],
    upstream: Float[Array, "n D"],
    term: _TokenTerms,
    settings: Settings,
) -> Float[Array, "k n"]:
    """Gradient of the logits of one block and one tile."""
    logits = logits_of(block.codes, tile)
    weights = jnp.exp(logits - term.log_normaliser)
    gradient = weights * (logits_of(block.codes.astype(upstream.dtype), upstream) - term.pull)
    if slope is not None:
        exponents = shifted(logits, term.maximum, settings.temperature) - term.sharp_log_mass
        gradient += jnp.exp(exponents) * (term.average * slope[:, None] - term.sample * exponents - term.offset)
    return mask_seen(gradient, block)


def _token_terms(
    upstream: Float[Array, "tiles n D"], saved: Residuals, given: Cotangents, plan: BlockPlan, settings: Settings
) -> _TokenTerms:
    weights = blocks.token_weights(plan, saved.maximum.dtype)
    weights = jnp.ones_like(saved.maximum) if weights is None else weights
    shards = lax.psum(1, settings.collectives.tokens) if settings.collectives.tokens else 1
    weights = weights / (plan.tokens * shards * settings.temperature)
    sample, average = weights * given.sample_entropy, weights * given.average_entropy
    return _TokenTerms(
        log_normaliser=saved.maximum + saved.log_mass,
        pull=jnp.sum(upstream * saved.expectation.swapaxes(1, 2), axis=-1),
        maximum=saved.maximum,
        sharp_log_mass=jnp.broadcast_to(saved.sharp_log_mass, saved.maximum.shape),
        sample=sample,
        average=average,
        offset=sample * saved.entropy + average * saved.slope_mean,
    )
