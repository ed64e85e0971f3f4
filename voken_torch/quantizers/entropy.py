"""Entropies of quantizers: exact, stable at any logit scale, and never of size tokens x codes.

Shapes: N tokens, D bits, H codes of the high bits in a block, L codes of the low bits.

The softmax over the 2^D sign codes of lookup-free quantization factorises over bits (Yu et al., "Language Model Beats
Diffusion", 2024; the docs page on quantizers derives it). A token's entropy is then a sum of D Bernoulli entropies, and
the average distribution is an average of outer products, P_high^T P_low / N: a matrix product, taken block by block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from voken_torch.quantizers.blocks import ReduceMean, in_full_precision

# The offset inside the logarithm of the average entropy, -sum a log(a + offset).
ENTROPY_OFFSET = 1e-5
# exp(-SATURATION) is zero in float32 and float64, and SATURATION * 0 is still zero.
SATURATION = 1e4


def average_entropy(average: Float[Tensor, "*s"]) -> Float[Tensor, ""]:
    """-sum a log(a + 1e-5) over all but a constant: add `average_entropy_constant` once for the whole codebook.

    Written with log1p(a / 1e-5), which keeps its relative precision when a code's share is far below the offset.
    """
    return -(average * torch.log1p(average / ENTROPY_OFFSET)).sum()


def average_entropy_constant() -> float:
    """Constant that `average_entropy` leaves out: -log(1e-5), because the shares add up to one."""
    return -math.log(ENTROPY_OFFSET)


def average_entropy_slope(average: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """d(-sum a log(a + 1e-5)) / da up to a constant, which no gradient sees because the shares add up to one."""
    return -torch.log1p(average / ENTROPY_OFFSET) - average / (average + ENTROPY_OFFSET)


class _BernoulliEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        ctx.save_for_backward(logits)
        magnitude = logits.abs().clamp_(max=SATURATION)
        return torch.log1p(torch.exp(-magnitude)) + magnitude * torch.sigmoid(-magnitude)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (logits,) = ctx.saved_tensors
        clipped = logits.clamp(-SATURATION, SATURATION)
        return gradient * -clipped * torch.sigmoid(clipped) * torch.sigmoid(-clipped)


def bernoulli_entropy(logits: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """Entropy in nats of a coin with P(1) = sigmoid(logit); finite, with finite gradient, for every finite logit."""
    return _BernoulliEntropy.apply(logits)


class _OuterProduct(NamedTuple):
    """The cut of D bits and N tokens: 2^outer blocks of 2^high x 2^low codes, tokens in tiles."""

    tokens: int
    outer: int
    high: int
    low: int
    tile: int

    @property
    def inner(self) -> int:
        return self.low + self.high

    def tiles(self) -> Iterator[slice]:
        return (slice(start, start + self.tile) for start in range(0, self.tokens, self.tile))


def _plan(tokens: int, dim: int, itemsize: int, block_bytes: int) -> _OuterProduct:
    elements = block_bytes // itemsize
    if elements < 4:
        raise ValueError(f"block_bytes is {block_bytes}; a block needs room for at least 4 values of {itemsize} bytes")
    inner = min(dim, int(math.log2(elements)))
    low = inner // 2
    high = inner - low
    return _OuterProduct(tokens, dim - inner, high, low, min(tokens, max(1, elements >> high)))


def _enumerate(zero: Float[Tensor, "n b"], one: Float[Tensor, "n b"]) -> Float[Tensor, "n 2^b"]:
    """Probability of every code of b independent bits; bit i of the code's number is column i."""
    probability = zero.new_ones((zero.shape[0], 1))
    for bit in range(zero.shape[1]):
        columns = slice(bit, bit + 1)
        probability = torch.cat([probability * zero[:, columns], probability * one[:, columns]], dim=1)
    return probability


def _bits_of(count: int, like: Tensor) -> Float[Tensor, "2^b b"]:
    numbers = torch.arange(2**count, device=like.device)[:, None]
    return ((numbers >> torch.arange(count, device=like.device)) & 1).to(like.dtype)


class _Tile(NamedTuple):
    """The factors of one tile of tokens: P(bit = 0), P(bit = 1) and the two enumerated distributions."""

    zero: Float[Tensor, "n D"]
    one: Float[Tensor, "n D"]
    high: Float[Tensor, "n H"]
    low: Float[Tensor, "n L"]


def _tile(logits: Float[Tensor, "n D"], plan: _OuterProduct) -> _Tile:
    one, zero = torch.sigmoid(logits), torch.sigmoid(-logits)
    high = _enumerate(zero[:, plan.low : plan.inner], one[:, plan.low : plan.inner])
    return _Tile(zero, one, high, _enumerate(zero[:, : plan.low], one[:, : plan.low]))


def _block_high(tile: _Tile, block: int, plan: _OuterProduct) -> Float[Tensor, "n H"]:
    """P_high of one block: the high bits' distribution times the probability of the block's outer bits."""
    factor = None
    for i in range(plan.outer):
        side = tile.one if block >> i & 1 else tile.zero
        column = side[:, plan.inner + i, None]
        factor = column if factor is None else factor * column
    return tile.high if factor is None else tile.high * factor


def _average(
    logits: Float[Tensor, "N D"], block: int, plan: _OuterProduct, reduce_mean: ReduceMean | None
) -> Float[Tensor, "H L"]:
    total = logits.new_zeros(2**plan.high, 2**plan.low)
    for rows in plan.tiles():
        tile = _tile(logits[rows], plan)
        total.addmm_(_block_high(tile, block, plan).t(), tile.low)
    total.div_(plan.tokens)
    return total if reduce_mean is None else reduce_mean(total)


class _FactorizedAverageEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, block_bytes: int, reduce_mean: ReduceMean | None) -> Tensor:
        plan = _plan(logits.shape[0], logits.shape[1], logits.element_size(), block_bytes)
        ctx.plan, ctx.reduce_mean = plan, reduce_mean
        with in_full_precision(logits):
            value = logits.new_full((), average_entropy_constant())
            slope = None
            for block in range(2**plan.outer):
                average = _average(logits, block, plan, reduce_mean)
                value = value + average_entropy(average)
                slope = average_entropy_slope(average) if plan.outer == 0 else None
        ctx.save_for_backward(logits, slope)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None, None]:
        logits, slope = ctx.saved_tensors
        plan: _OuterProduct = ctx.plan
        with in_full_precision(logits):
            gradient = torch.zeros_like(logits)
            for block in range(2**plan.outer):
                if plan.outer:
                    slope = average_entropy_slope(_average(logits, block, plan, ctx.reduce_mean))
                for rows in plan.tiles():
                    gradient[rows] += _tile_gradient(_tile(logits[rows], plan), slope, block, plan)
            if ctx.reduce_mean is not None:
                cotangent = ctx.reduce_mean(cotangent)
            return gradient.mul_(cotangent / plan.tokens), None, None


def factorized_average_entropy(
    logits: Float[Tensor, "N D"], block_bytes: int, reduce_mean: ReduceMean | None = None
) -> Float[Tensor, ""]:
    """-sum_k a_k log(a_k + 1e-5) over all 2^D codes, a the mean over tokens of a product of D independent bits.

    Args:
        logits: P(bit i of token n is 1) = sigmoid(logits[n, i]); float32 or float64.
        block_bytes: no temporary, and nothing kept for the backward pass, is larger than this (or than the logits).
        reduce_mean: makes `a` the mean over the tokens of all processes.

    Returns:
        The entropy in nats. The gradient is exact; the backward pass recomputes the factors.
    """
    return _FactorizedAverageEntropy.apply(logits, block_bytes, reduce_mean)


def _tile_gradient(tile: _Tile, slope: Float[Tensor, "H L"], block: int, plan: _OuterProduct) -> Float[Tensor, "n D"]:
    """Gradient of sum_n <slope, P_high,n^T P_low,n> with respect to the logits of the bits.

    A code's probability moves with the logit of bit i by itself times P(i = 0) if the code has the bit, and by itself
    times -P(i = 1) if not: so the mass-weighted slope is summed over the codes with and without each bit.
    """
    high = _block_high(tile, block, plan)
    low_mass = torch.mm(high, slope).mul_(tile.low)
    high_mass = torch.mm(tile.low, slope.t()).mul_(high)
    with_bit, without_bit = [], []
    for mass, count in ((low_mass, plan.low), (high_mass, plan.high)):
        bits = _bits_of(count, mass)
        with_bit.append(torch.mm(mass, bits))
        without_bit.append(torch.mm(mass, 1 - bits))
    mass = low_mass.sum(dim=1, keepdim=True)
    for i in range(plan.outer):
        chosen = block >> i & 1
        with_bit.append(mass * chosen)
        without_bit.append(mass * (1 - chosen))
    return torch.cat(with_bit, dim=1) * tile.zero - torch.cat(without_bit, dim=1) * tile.one
