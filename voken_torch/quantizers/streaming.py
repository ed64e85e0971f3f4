"""The soft assignment of tokens to codes, streamed: what `ibq` differentiates.

Shapes: N tokens, K codes, D code dimension; n tokens in a tile, k codes in a block.

With logits l = z E^T, p = softmax(l) and q = softmax(l / temperature), the forward pass needs per token the winner,
both normalisers, the expectation p E (the backward pass needs it) and the entropy of q, and per code the average of q.
One pass over blocks of codes with running maxima (online softmax) gives the first, a second pass the average. The
backward pass recomputes the logits of a block and emits that block's codebook gradient. Nothing of size N x K exists.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from voken_torch.quantizers.assignment import Assignment, Cotangents, Settings
from voken_torch.quantizers.blocks import (
    BlockPlan,
    Buffers,
    ReduceMean,
    active_rows,
    compute_dtype,
    exp_,
    in_full_precision,
    plan_blocks,
    row_argmax,
)
from voken_torch.quantizers.entropy import (
    average_entropy,
    average_entropy_constant,
    average_entropy_slope,
)


class SharpResiduals(NamedTuple):
    """Residuals of q for the backward pass of the entropy terms."""

    log_mass: Float[Tensor, " N"]
    entropy: Float[Tensor, " N"]
    slope_mean: Float[Tensor, " N"]
    slope: Float[Tensor, " K"]


class Residuals(NamedTuple):
    """Residuals of the backward pass besides z and the codebook: O(N D + K)."""

    indices: Int[Tensor, " N"]
    maximum: Float[Tensor, " N"]
    log_mass: Float[Tensor, " N"]
    expectation: Float[Tensor, "N D"]
    sharp: SharpResiduals | None


class _Search:
    """Running state of one tile over the blocks of codes: maxima, and sums relative to them."""

    def __init__(self, tile: Float[Tensor, "n D"], settings: Settings, soft: bool):
        count = tile.shape[0]
        self.tile, self.settings, self.soft = tile, settings, soft
        self.maximum = tile.new_full((count,), torch.finfo(tile.dtype).min)
        self.winner = torch.zeros(count, dtype=torch.int64, device=tile.device)
        self.mass, self.sharp_mass, self.sharp_moment = tile.new_zeros(3, count)
        self.expectation = torch.zeros_like(tile) if soft else tile.new_zeros(count, 0)
        self.block_maxima: list[Tensor] = []

    def visit(self, codes: Float[Tensor, "k D"], start: int, logits: Tensor, weights: Tensor) -> Tensor:
        """Take in one block of codes, the first of which has the number `start`; the last two are working memory.

        Returns the block's largest logit of every token.
        """
        torch.mm(self.tile, codes.t(), out=logits)
        block_maximum, block_index = row_argmax(logits)
        maximum = torch.maximum(self.maximum, block_maximum)
        self.winner = torch.where(block_maximum > self.maximum, block_index + start, self.winner)
        if self.soft or self.settings.use_entropy:
            logits.sub_(maximum[:, None])
        if self.soft:
            exp_(logits, out=weights)
            scale = torch.exp(self.maximum - maximum)
            self.mass.mul_(scale).add_(weights.sum(dim=1))
            self.expectation.mul_(scale[:, None]).addmm_(weights, codes)
        if self.settings.use_entropy:
            self._visit_sharp(maximum, block_maximum, logits, weights)
        self.maximum = maximum
        return block_maximum

    def _visit_sharp(self, maximum: Tensor, block_maximum: Tensor, shifted: Tensor, weights: Tensor) -> None:
        inverse = 1 / self.settings.temperature
        shift = (self.maximum - maximum) * inverse
        factor = exp_(shift, out=torch.empty_like(shift))
        self.sharp_moment.add_(self.sharp_mass * shift).mul_(factor)
        self.sharp_mass.mul_(factor)
        rows = active_rows((block_maximum - maximum) * inverse)
        if rows is not None:
            shifted, weights = shifted[rows], weights[: rows.shape[0]]
        exp_(shifted.mul_(inverse), out=weights)
        mass, moment = weights.sum(dim=1), shifted.mul_(weights).sum(dim=1)
        if rows is None:
            self.sharp_mass.add_(mass)
            self.sharp_moment.add_(moment)
        else:
            self.sharp_mass.index_add_(0, rows, mass)
            self.sharp_moment.index_add_(0, rows, moment)


def make_plan(z: Float[Tensor, "N D"], codebook: Float[Tensor, "K D"], memory_budget_bytes: int) -> BlockPlan:
    """Cut N tokens and K codes for logits of `compute_dtype`."""
    itemsize = torch.finfo(compute_dtype(z, codebook)).bits // 8
    return plan_blocks(z.shape[0], codebook.shape[0], itemsize, memory_budget_bytes, z.device)


def forward(
    z: Float[Tensor, "N D"], codebook: Float[Tensor, "K D"], settings: Settings, soft: bool
) -> tuple[Assignment, Residuals | None]:
    """The values, and with `soft` what `backward` needs. Differentiates nothing itself."""
    with torch.no_grad(), in_full_precision(z):
        dtype = compute_dtype(z, codebook)
        z, plan = z.to(dtype), make_plan(z, codebook, settings.memory_budget_bytes)
        buffers = Buffers(plan, z, dtype, 2)
        found = [_search(z[rows], codebook, plan, settings, soft, buffers) for rows in plan.tiles()]
        indices = torch.cat([search.winner for search in found])
        hard, zero = codebook[indices].to(dtype), z.new_zeros(())
        result = Assignment(hard, indices.to(torch.int32), zero, zero)
        maximum = torch.cat([search.maximum for search in found])
        sharp_residuals = None
        if settings.use_entropy:
            sharp_mass = torch.cat([search.sharp_mass for search in found])
            moment = torch.cat([search.sharp_moment for search in found])
            log_mass = sharp_mass.log()
            entropy = log_mass - moment / sharp_mass
            maxima = [torch.stack(search.block_maxima) for search in found if search.block_maxima]
            block_maxima = torch.cat(maxima, dim=1) if maxima else None
            sharp = _Sharp(z, maximum, log_mass, block_maxima, 1 / settings.temperature, buffers)
            value, slope, slope_mean = _average_pass(sharp, codebook, plan, settings.reduce_mean, soft)
            result = result._replace(sample_entropy=entropy.mean(), average_entropy=value)
            sharp_residuals = SharpResiduals(log_mass, entropy, slope_mean, slope)
        if not soft:
            return result, None
        mass = torch.cat([search.mass for search in found])
        expectation = torch.cat([search.expectation for search in found]).div_(mass[:, None])
        return result, Residuals(indices, maximum, mass.log(), expectation, sharp_residuals)


def _search(
    tile: Tensor, codebook: Tensor, plan: BlockPlan, settings: Settings, soft: bool, buffers: Buffers
) -> _Search:
    search = _Search(tile, settings, soft)
    # Worth their memory only where rows can be left out.
    elements = settings.memory_budget_bytes // tile.element_size()
    keep = tile.device.type == "cpu" and settings.use_entropy and plan.tokens * len(list(plan.blocks())) <= elements
    for block in plan.blocks():
        codes = codebook[block].to(tile.dtype)
        logits, weights = (buffers.view(i, tile.shape[0], codes.shape[0]) for i in range(2))
        block_maximum = search.visit(codes, block.start, logits, weights)
        if keep:
            search.block_maxima.append(block_maximum)
    return search


class _Sharp(NamedTuple):
    """The sharp softmax q of all tokens, block by block.

    Attributes:
        z: tokens in the dtype of the logits.
        maximum, log_mass: largest logit, and logarithm of the sum of exp((logit - maximum) / temperature).
        block_maxima: largest logit of every token in every block, or None where that would not fit the budget.
    """

    z: Float[Tensor, "N D"]
    maximum: Float[Tensor, " N"]
    log_mass: Float[Tensor, " N"]
    block_maxima: Float[Tensor, "blocks N"] | None
    inverse_temperature: float
    buffers: Buffers

    def rows(self, tile: slice, number: int) -> slice | Int[Tensor, " m"]:
        """The tokens of a tile to which block `number` matters."""
        if self.block_maxima is None:
            return tile
        exponents = (self.block_maxima[number, tile] - self.maximum[tile]) * self.inverse_temperature
        active = active_rows(exponents - self.log_mass[tile])
        return tile if active is None else active + tile.start

    def shares(self, rows: slice | Int[Tensor, " m"], codes: Float[Tensor, "k D"]) -> Float[Tensor, "m k"]:
        """The shares q of these tokens and codes, in a buffer."""
        tokens = self.z[rows]
        share = torch.mm(tokens, codes.t(), out=self.buffers.view(0, tokens.shape[0], codes.shape[0]))
        share.sub_(self.maximum[rows][:, None]).mul_(self.inverse_temperature).sub_(self.log_mass[rows][:, None])
        return exp_(share)


def _average_pass(
    sharp: _Sharp, codebook: Float[Tensor, "K D"], plan: BlockPlan, reduce_mean: ReduceMean | None, slopes: bool
) -> tuple[Float[Tensor, ""], Float[Tensor, " K"], Float[Tensor, " N"]]:
    """Second pass: the entropy of the average of q, its slope per code and the slope's mean under each token's q."""
    total = sharp.z.new_zeros(())
    slope, slope_mean = sharp.z.new_empty(plan.codes), torch.zeros_like(sharp.maximum)
    for number, block in enumerate(plan.blocks()):
        codes = codebook[block].to(sharp.z.dtype)
        share = codes.new_zeros(0)
        tiles = [sharp.rows(tile, number) for tile in plan.tiles()]
        average = sharp.z.new_zeros(codes.shape[0])
        for rows in tiles:
            share = sharp.shares(rows, codes)
            average += share.sum(dim=0)
        average /= plan.tokens
        if reduce_mean is not None:
            average = reduce_mean(average)
        total += average_entropy(average)
        if slopes:
            slope[block] = average_entropy_slope(average)
            for rows in tiles:
                # One tile's shares are still in the buffer.
                share = share if len(tiles) == 1 else sharp.shares(rows, codes)
                slope_mean[rows] += torch.mv(share, slope[block])
    return total + average_entropy_constant(), slope, slope_mean


class _TokenTerms(NamedTuple):
    """Per-token numbers of the backward pass, as columns; the last two are 0 without entropy.

    The gradient of a logit is p (<G, e_k> - pull) + q (average * slope_k - sample * log q - offset).
    """

    log_normaliser: Float[Tensor, "N 1"]
    pull: Float[Tensor, "N 1"]
    maximum: Float[Tensor, "N 1"]
    sharp_log_mass: Float[Tensor, "N 1"]
    offset: Float[Tensor, "N 1"]

    def of(self, rows: slice | Int[Tensor, " m"]) -> _TokenTerms:
        """The terms of some tokens."""
        return _TokenTerms(*(column[rows] for column in self))


def _token_terms(saved: Residuals, given: Cotangents, sample: Tensor, average: Tensor) -> _TokenTerms:
    pull = (given.soft * saved.expectation).sum(dim=1)
    log_mass = offset = torch.zeros_like(pull)
    if saved.sharp is not None:
        log_mass = saved.sharp.log_mass
        offset = sample * saved.sharp.entropy + average * saved.sharp.slope_mean
    columns = (saved.maximum + saved.log_mass, pull, saved.maximum, log_mass, offset)
    return _TokenTerms(*(column[:, None] for column in columns))


def backward(
    z: Float[Tensor, "N D"], codebook: Float[Tensor, "K D"], saved: Residuals, given: Cotangents, settings: Settings
) -> tuple[Float[Tensor, "N D"], Float[Tensor, "K D"]]:
    """Gradients of the soft assignment with respect to z and the codebook, one block of codes at a time.

    `given.soft` is the gradient of o E with o = h - stop_gradient(p) + p: it reaches the codebook through the rows of
    h, and z and every code through p. `given.hard` is the gradient of h E and reaches the winners' rows alone.
    """
    with torch.no_grad(), in_full_precision(z):
        dtype, plan = compute_dtype(z, codebook), make_plan(z, codebook, settings.memory_budget_bytes)
        tokens, upstream = z.to(dtype), given.soft.to(dtype)
        weight = 1 / (plan.tokens * settings.temperature)
        sample, average = given.sample_entropy * weight, given.average_entropy * weight
        if settings.reduce_mean is not None:
            average = settings.reduce_mean(average)
        terms = _token_terms(saved, given, sample, average)
        dz, dcodebook = torch.zeros_like(tokens), torch.empty_like(codebook, dtype=dtype)
        buffers = Buffers(plan, tokens, dtype, 3)
        for block in plan.blocks():
            codes = codebook[block].to(dtype)
            slope = None if saved.sharp is None else saved.sharp.slope[block] * average
            for rows in plan.tiles():
                gradient = _logit_gradient(
                    tokens[rows], upstream[rows], codes, terms.of(rows), sample, slope, settings, buffers
                )
                dz[rows].addmm_(gradient, codes)
                # beta 0 writes, so the gradient need not be cleared beforehand.
                dcodebook[block].addmm_(gradient.t(), tokens[rows], beta=0 if rows.start == 0 else 1)
        dcodebook.index_add_(0, saved.indices, given.soft + given.hard)
        return dz.to(z.dtype), dcodebook.to(codebook.dtype)


def _logit_gradient(
    tile: Float[Tensor, "n D"],
    upstream: Float[Tensor, "n D"],
    codes: Float[Tensor, "k D"],
    term: _TokenTerms,
    sample: Float[Tensor, ""],
    slope: Float[Tensor, " k"] | None,
    settings: Settings,
    buffers: Buffers,
) -> Float[Tensor, "n k"]:
    """Gradient of one block's logits, in one of the buffers; `slope` is already times the average's cotangent."""
    logits, weights, gradient = (buffers.view(i, tile.shape[0], codes.shape[0]) for i in range(3))
    torch.mm(tile, codes.t(), out=logits)
    exp_(torch.sub(logits, term.log_normaliser, out=weights))
    torch.mm(upstream, codes.t(), out=gradient)
    gradient.sub_(term.pull).mul_(weights)
    if slope is None:
        return gradient
    exponent = (logits.amax(dim=1) - term.maximum[:, 0]) / settings.temperature - term.sharp_log_mass[:, 0]
    rows = active_rows(exponent)
    if rows is not None:
        logits, weights = logits[rows], weights[: rows.shape[0]]
        term = term.of(rows)
    log_share = logits.sub_(term.maximum).mul_(1 / settings.temperature).sub_(term.sharp_log_mass)
    exp_(log_share, out=weights)
    log_share.mul_(-sample).add_(slope).sub_(term.offset)
    if rows is None:
        return gradient.addcmul_(log_share, weights)
    return gradient.index_add_(0, rows, log_share.mul_(weights))
