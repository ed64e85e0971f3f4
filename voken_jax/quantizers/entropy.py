"""Entropies of quantizers: exact, stable at any logit scale, and never of size tokens x codes.

Shapes: N tokens, D bits, H codes of the high bits in a block, L codes of the low bits.

The softmax over the 2^D sign codes of lookup-free quantization factorises over bits (Yu et al., "Language Model Beats
Diffusion", 2024; the docs page on quantizers derives it). A token's entropy is then a sum of D Bernoulli entropies, and
the average distribution is an average of outer products, P_high^T P_low / N: a matrix product, taken block by block.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from voken_jax.quantizers.blocks import map_tiles, sum_tiles

# The offset inside the logarithm of the average entropy, -sum a log(a + offset).
ENTROPY_OFFSET = 1e-5
# exp(-SATURATION) is zero in float32 and float64, and SATURATION * 0 is still zero.
SATURATION = 1e4

_PRECISION = lax.Precision.HIGHEST


def average_entropy(average: Float[Array, "..."]) -> Float[Array, ""]:
    """-sum a log(a + 1e-5) over all but a constant: add `average_entropy_constant` once for the whole codebook.

    Written with log1p(a / 1e-5), which keeps its relative precision when a code's share is far below the offset.
    """
    return -jnp.sum(average * jnp.log1p(average / ENTROPY_OFFSET))


def average_entropy_constant() -> float:
    """Constant that `average_entropy` leaves out: -log(1e-5), because the shares add up to one."""
    return -math.log(ENTROPY_OFFSET)


def average_entropy_slope(average: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """d(-sum a log(a + 1e-5)) / da up to a constant, which no gradient sees because the shares add up to one."""
    return -jnp.log1p(average / ENTROPY_OFFSET) - average / (average + ENTROPY_OFFSET)


@jax.custom_jvp
def bernoulli_entropy(logits: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Entropy in nats of a coin with P(1) = sigmoid(logit); finite, with finite gradient, for every finite logit."""
    magnitude = jnp.minimum(jnp.abs(logits), SATURATION)
    return jnp.log1p(jnp.exp(-magnitude)) + magnitude * jax.nn.sigmoid(-magnitude)


@bernoulli_entropy.defjvp
def _bernoulli_entropy_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (logits,), (tangent,) = primals, tangents
    clipped = jnp.clip(logits, -SATURATION, SATURATION)
    slope = -clipped * jax.nn.sigmoid(clipped) * jax.nn.sigmoid(-clipped)
    return bernoulli_entropy(logits), slope * tangent


class _OuterProduct(NamedTuple):
    """The cut of D bits and N tokens: 2^outer blocks of 2^high x 2^low codes, tokens in tiles."""

    tokens: int
    outer: int
    high: int
    low: int
    tile: int
    tiles: int


def _plan(tokens: int, dim: int, itemsize: int, block_bytes: int) -> _OuterProduct:
    elements = block_bytes // itemsize
    if elements < 4:
        raise ValueError(f"block_bytes is {block_bytes}; a block needs room for at least 4 values of {itemsize} bytes")
    inner = min(dim, int(math.log2(elements)))
    low = inner // 2
    high = inner - low
    tiles = -(-tokens // max(1, elements >> high))
    return _OuterProduct(tokens, dim - inner, high, low, -(-tokens // tiles), tiles)


def _enumerate(zero: Float[Array, "n b"], one: Float[Array, "n b"]) -> Float[Array, "n 2**b"]:
    """Probability of every code of b independent bits; bit i of the code's number is column i."""
    probability = jnp.ones((zero.shape[0], 1), zero.dtype)
    for bit in range(zero.shape[1]):
        columns = slice(bit, bit + 1)
        probability = jnp.concatenate([probability * zero[:, columns], probability * one[:, columns]], axis=1)
    return probability


def _bits_of(count: int, dtype: Any) -> Float[Array, "codes bits"]:
    numbers = np.arange(2**count)[:, None]
    return jnp.asarray((numbers >> np.arange(count)) & 1, dtype)


class _Tile(NamedTuple):
    """The factors of one tile of tokens: P(bit = 0), P(bit = 1) and the two enumerated distributions."""

    zero: Float[Array, "n D"]
    one: Float[Array, "n D"]
    weight: Float[Array, "n"]
    high: Float[Array, "n H"]
    low: Float[Array, "n L"]


def _tile(logits: Float[Array, "n D"], weight: Float[Array, "n"], plan: _OuterProduct) -> _Tile:
    one, zero = jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits)
    inner = plan.low + plan.high
    high = _enumerate(zero[:, plan.low : inner], one[:, plan.low : inner])
    return _Tile(zero, one, weight, high, _enumerate(zero[:, : plan.low], one[:, : plan.low]))


def _block_high(tile: _Tile, block: Int[Array, ""], plan: _OuterProduct) -> Float[Array, "n H"]:
    """P_high of one block: the high bits' distribution times the probability of the block's outer bits."""
    if not plan.outer:
        return tile.high * tile.weight[:, None]
    chosen = ((block >> jnp.arange(plan.outer)) & 1).astype(bool)
    inner = plan.low + plan.high
    factors = jnp.where(chosen, tile.one[:, inner:], tile.zero[:, inner:])
    return tile.high * (tile.weight * factors.prod(axis=1))[:, None]


def _average(tiles: tuple[Array, Array], block: Int[Array, ""], plan: _OuterProduct) -> Float[Array, "H L"]:
    def outer_product(logits: Array, weight: Array) -> Array:
        tile = _tile(logits, weight, plan)
        return jnp.matmul(_block_high(tile, block, plan).T, tile.low, precision=_PRECISION)

    return sum_tiles(outer_product, *tiles) / plan.tokens


def _cut(logits: Float[Array, "N D"], plan: _OuterProduct) -> tuple[Array, Array]:
    """Tiles of tokens and their weights (0 for padding); strided, so that sharded tokens stay spread over devices."""
    padding = plan.tile * plan.tiles - plan.tokens
    weight = jnp.pad(jnp.ones((plan.tokens,), logits.dtype), (0, padding))
    padded = jnp.pad(logits, ((0, padding), (0, 0))) if padding else logits
    cut = padded.reshape(plan.tile, plan.tiles, logits.shape[1]).swapaxes(0, 1)
    return cut, weight.reshape(plan.tile, plan.tiles).T


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def factorized_average_entropy(logits: Float[Array, "N D"], block_bytes: int) -> Float[Array, ""]:
    """-sum_k a_k log(a_k + 1e-5) over all 2^D codes, a the mean over tokens of a product of D independent bits.

    Args:
      logits: P(bit i of token n is 1) = sigmoid(logits[n, i]); float32 or float64.
      block_bytes: no temporary, and nothing kept for the backward pass, is larger than this (or than the logits).

    Returns:
      The entropy in nats. The gradient is exact; the backward pass recomputes the blocks.
    """
    return _forward(logits, block_bytes)[0]


def _forward(logits: Array, block_bytes: int) -> tuple[Array, tuple[Array, Array | None]]:
    plan = _plan(logits.shape[0], logits.shape[1], logits.dtype.itemsize, block_bytes)
    tiles = _cut(logits, plan)
    constant = jnp.asarray(average_entropy_constant(), logits.dtype)
    if not plan.outer:
        average = _average(tiles, jnp.int32(0), plan)
        return constant + average_entropy(average), (logits, average_entropy_slope(average))

    def step(total: Array, block: Array) -> tuple[Array, None]:
        return total + average_entropy(_average(tiles, block, plan)), None

    total, _ = lax.scan(step, jnp.zeros((), logits.dtype), jnp.arange(2**plan.outer))
    return constant + total, (logits, None)


def _backward(block_bytes: int, residuals: tuple[Array, Array | None], cotangent: Array) -> tuple[Array]:
    logits, slope = residuals
    plan = _plan(logits.shape[0], logits.shape[1], logits.dtype.itemsize, block_bytes)
    tiles = _cut(logits, plan)

    def step(total: Array, block: Array) -> tuple[Array, None]:
        block_slope = average_entropy_slope(_average(tiles, block, plan)) if slope is None else slope
        return total + map_tiles(lambda t, w: _tile_gradient(_tile(t, w, plan), block_slope, block, plan), *tiles), None

    if plan.outer:
        gradient, _ = lax.scan(step, jnp.zeros_like(tiles[0]), jnp.arange(2**plan.outer))
    else:
        gradient, _ = step(jnp.zeros_like(tiles[0]), jnp.int32(0))
    flat = gradient.swapaxes(0, 1).reshape(-1, logits.shape[1])[: plan.tokens]
    return (flat * (cotangent / plan.tokens),)


factorized_average_entropy.defvjp(_forward, _backward)


def _tile_gradient(tile: _Tile, slope: Float[Array, "H L"], block: Array, plan: _OuterProduct) -> Float[Array, "n D"]:
    """Gradient of sum_n <slope, P_high,n^T P_low,n> with respect to the logits of the bits.

    A code's probability moves with the logit of bit i by itself times P(i = 0) if the code has the bit, and by itself
    times -P(i = 1) if not: so the mass-weighted slope is summed over the codes with and without each bit.
    """
    high = _block_high(tile, block, plan)
    low_mass = jnp.matmul(high, slope, precision=_PRECISION) * tile.low
    high_mass = jnp.matmul(tile.low, slope.T, precision=_PRECISION) * high
    parts = []
    for mass, count in ((low_mass, plan.low), (high_mass, plan.high)):
        bits = _bits_of(count, mass.dtype)
        parts.append((jnp.matmul(mass, bits, precision=_PRECISION), jnp.matmul(mass, 1 - bits, precision=_PRECISION)))
    if plan.outer:
        chosen = ((block >> jnp.arange(plan.outer)) & 1).astype(high.dtype)
        mass = low_mass.sum(axis=1, keepdims=True)
        parts.append((mass * chosen, mass * (1 - chosen)))
    with_bit, without_bit = (jnp.concatenate(side, axis=1) for side in zip(*parts, strict=True))
    return with_bit * tile.zero - without_bit * tile.one
