"""The soft assignment of tokens to codes, a tile of tokens with all its codes at a time.

Shapes: N tokens, K codes, D code dimension; n tokens in a tile, k codes in a block, m rows of a block.

Where the logits of a tile fit the memory budget, they need not be made twice in one pass: the forward pass takes the
winner, the normaliser and entropy of q and the tile's part of the average of q from one product. The backward pass
makes logits and their products with the upstream gradient once, reduces them to what couples the codes of a token, and
turns them into the gradients. That is five products of size N x K x D where `streaming` needs seven, and the residuals
are O(N + K): no expectation is kept. Rows are stored block by block, because passes over a block stay in the cache.
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
    active_rows,
    compute_dtype,
    exp_,
    in_full_precision,
    least_exponent,
    plan_rows,
    row_argmax,
)
from voken_torch.quantizers.entropy import average_entropy, average_entropy_constant, average_entropy_slope

# Shares q are kept one by one where at most one in so many is more than nothing: then they are small beside the rows.
_FEW = 256


class RowResiduals(NamedTuple):
    """Residuals of the backward pass besides z and the codebook: O(N + K); the last two are empty without entropy."""

    indices: Int[Tensor, " N"]
    maximum: Float[Tensor, " N"]
    sharp_log_mass: Float[Tensor, " N"]
    slope: Float[Tensor, " K"]


class _Tile(NamedTuple):
    """Values of the forward pass for each token of a tile; the last two are empty without entropy."""

    winner: Int[Tensor, " n"]
    maximum: Float[Tensor, " n"]
    sharp_log_mass: Float[Tensor, " n"]
    entropy: Float[Tensor, " n"]


class _Rows:
    """Memory for `count` numbers of every token of a tile and every code, each block contiguous."""

    def __init__(self, plan: BlockPlan, like: Tensor, codes: int, count: int):
        self._count, self._width = count, codes
        self._flat = like.new_empty(count * plan.tile * codes)

    def view(self, tokens: int, block: slice) -> Float[Tensor, "count*n k"]:
        """The numbers of one block; blocks share their memory where there is room for one only."""
        height, codes = self._count * tokens, block.stop - block.start
        start = height * block.start if block.stop <= self._width else 0
        return self._flat[start : start + height * codes].view(height, codes)


def make_plan(z: Float[Tensor, "N D"], codebook: Float[Tensor, "K D"], settings: Settings) -> BlockPlan | None:
    """The cut for logits of `compute_dtype`; None where whole rows do not fit the budget."""
    itemsize = torch.finfo(compute_dtype(z, codebook)).bits // 8
    return plan_rows(z.shape[0], codebook.shape[0], itemsize, settings.memory_budget_bytes, z.device)


def forward(
    z: Float[Tensor, "N D"], codebook: Float[Tensor, "K D"], settings: Settings, plan: BlockPlan
) -> tuple[Assignment, RowResiduals]:
    """The values, and what `backward` needs. Differentiates nothing itself."""
    with torch.no_grad(), in_full_precision(z):
        dtype, sharp = compute_dtype(z, codebook), settings.use_entropy
        z = z.to(dtype)
        logits = _Rows(plan, z, plan.codes if sharp else plan.block, 1)
        mass = z.new_zeros(plan.codes if sharp else 0)
        tiles = [_forward_tile(z[rows], codebook, settings, plan, logits, mass) for rows in plan.tiles()]
        found = _Tile(*(torch.cat(parts) for parts in zip(*tiles, strict=True)))
        hard, zero = codebook[found.winner].to(dtype), z.new_zeros(())
        result, slope = Assignment(hard, found.winner.to(torch.int32), zero, zero), mass
        if sharp:
            average = mass / plan.tokens
            if settings.reduce_mean is not None:
                average = settings.reduce_mean(average)
            slope = average_entropy_slope(average)
            entropy = average_entropy(average) + average_entropy_constant()
            result = result._replace(sample_entropy=found.entropy.mean(), average_entropy=entropy)
        return result, RowResiduals(found.winner, found.maximum, found.sharp_log_mass, slope)


def _forward_tile(
    tile: Float[Tensor, "n D"],
    codebook: Float[Tensor, "K D"],
    settings: Settings,
    plan: BlockPlan,
    rows: _Rows,
    mass: Float[Tensor, " K"],
) -> _Tile:
    """Search one tile and add its tokens' shares q to `mass`."""
    count = tile.shape[0]
    maximum = tile.new_full((count,), torch.finfo(tile.dtype).min)
    winner = torch.zeros(count, dtype=torch.int64, device=tile.device)
    maxima = []
    for block in plan.blocks():
        logits = torch.mm(tile, codebook[block].to(tile.dtype).t(), out=rows.view(count, block))
        block_maximum, index = row_argmax(logits)
        winner = torch.where(block_maximum > maximum, index + block.start, winner)
        maximum = torch.maximum(maximum, block_maximum)
        maxima.append(block_maximum)
    if not settings.use_entropy:
        return _Tile(winner, maximum, tile.new_zeros(0), tile.new_zeros(0))
    inverse = 1 / settings.temperature
    sharp_mass, entropy = tile.new_zeros(2, count)
    scratch, kept = Buffers(plan, tile, tile.dtype, 1), []
    for block, block_maximum in zip(plan.blocks(), maxima, strict=True):
        active = active_rows((block_maximum - maximum) * inverse)
        exponents, offset = rows.view(count, block), maximum
        if active is not None:
            offset = maximum[active]
            selected = _select(exponents, active, scratch.view(0, *exponents.shape))
            # What is left of the block has nothing to add: its first rows hold what has.
            exponents = exponents[: active.shape[0]].copy_(selected)
        exponents.sub_(offset[:, None]).mul_(inverse)
        _add(sharp_mass, active, exp_(exponents, out=scratch.view(0, *exponents.shape)).sum(dim=1))
        kept.append((active, exponents))
    log_mass = sharp_mass.log()
    for block, (active, exponents) in zip(plan.blocks(), kept, strict=True):
        log_share = exponents.sub_((log_mass if active is None else log_mass[active])[:, None])
        share = exp_(log_share, out=scratch.view(0, *log_share.shape))
        mass[block] += share.sum(dim=0)
        _add(entropy, active, log_share.mul_(share).sum(dim=1))
    return _Tile(winner, maximum, log_mass, -entropy)


def _select(x: Float[Tensor, "n k"], rows: Int[Tensor, " m"], memory: Float[Tensor, "n k"]) -> Float[Tensor, "m k"]:
    """Some rows of x, in the given memory: fresh memory costs more than the rows are worth."""
    return torch.index_select(x, 0, rows, out=memory[: rows.shape[0]])


def _add(total: Float[Tensor, "n ..."], rows: Int[Tensor, " m"] | None, update: Float[Tensor, "m ..."]) -> None:
    """Add to some rows, or to all of them."""
    if rows is None:
        total += update
    else:
        total.index_add_(0, rows, update)


class _Given(NamedTuple):
    """One tile of the backward pass; sample and average weigh the two entropies of a token."""

    tile: Float[Tensor, "n D"]
    upstream: Float[Tensor, "n D"]
    maximum: Float[Tensor, " n"]
    sharp_log_mass: Float[Tensor, " n"]
    sample: Float[Tensor, ""]
    slope: Float[Tensor, " K"]


def backward(
    z: Float[Tensor, "N D"],
    codebook: Float[Tensor, "K D"],
    saved: RowResiduals,
    given: Cotangents,
    settings: Settings,
    plan: BlockPlan,
) -> tuple[Float[Tensor, "N D"], Float[Tensor, "K D"]]:
    """Gradients of the soft assignment with respect to z and the codebook, see `streaming.backward`.

    The gradient of a logit is p (<G, e_k> - pull) + q (factor - offset), where factor = average * slope_k
    - sample * log q, pull is the mean of <G, e> under p and offset that of the factor under q.
    """
    with torch.no_grad(), in_full_precision(z):
        dtype = compute_dtype(z, codebook)
        tokens, upstream = z.to(dtype), given.soft.to(dtype)
        weight = 1 / (plan.tokens * settings.temperature)
        sample, average = given.sample_entropy * weight, given.average_entropy * weight
        if settings.reduce_mean is not None:
            average = settings.reduce_mean(average)
        slope = saved.slope * average
        dz, dcodebook = torch.zeros_like(tokens), torch.empty_like(codebook, dtype=dtype)
        memory, scratch = _Rows(plan, tokens, plan.codes, 2), Buffers(plan, tokens, dtype, 2)
        for rows in plan.tiles():
            log_mass = saved.sharp_log_mass[rows]
            tile = _Given(tokens[rows], upstream[rows], saved.maximum[rows], log_mass, sample, slope)
            work = _BackwardTile(tile, settings, plan, memory, scratch)
            work.reduce(codebook)
            # The first tile writes the codes' gradient, so that it need not be cleared beforehand.
            work.spread(codebook, dz[rows], dcodebook, beta=0 if rows.start == 0 else 1)
        dcodebook.index_add_(0, saved.indices, given.soft + given.hard)
        return dz.to(z.dtype), dcodebook.to(codebook.dtype)


class _Entries(NamedTuple):
    """The shares q of a block that are more than nothing, where they are few: token, code in the block and log q."""

    tokens: Int[Tensor, " e"]
    codes: Int[Tensor, " e"]
    log_share: Float[Tensor, " e"]


class _BackwardTile:
    """Gradients of one tile: `reduce` makes its rows and sums them over the codes, `spread` makes gradients of them.

    With w = exp(logit - maximum), the rows keep w and w <G, e_k>, from which the part of p follows without another
    exponential: mass times the gradient is w <G, e_k> - pull w, and 1 / mass is applied to the tokens. Where
    few shares q of a block matter, those are kept beside; otherwise the logits are kept instead of w.
    """

    def __init__(self, given: _Given, settings: Settings, plan: BlockPlan, memory: _Rows, scratch: Buffers):
        self.given, self.plan, self.memory, self.scratch = given, plan, memory, scratch
        self.sharp, self.inverse = settings.use_entropy, 1 / settings.temperature
        self.mass, self.pull, self.offset = given.tile.new_zeros(3, given.tile.shape[0])
        self.entries: list[_Entries | None] = []

    def reduce(self, codebook: Float[Tensor, "K D"]) -> None:
        """Rows of all codes, and their sums."""
        count, pair = self.given.tile.shape[0], torch.cat([self.given.tile, self.given.upstream])
        for block in self.plan.blocks():
            rows = torch.mm(pair, codebook[block].to(pair.dtype).t(), out=self.memory.view(count, block))
            logits, products = rows[:count], rows[count:]
            weights = logits
            if self.sharp:
                entries = self._reduce_sharp(logits, block)
                self.entries.append(entries)
                weights = self.scratch.view(0, *logits.shape) if entries is None else logits
            exp_(torch.sub(logits, self.given.maximum[:, None], out=weights))
            self.mass += weights.sum(dim=1)
            self.pull += products.mul_(weights).sum(dim=1)
        self.pull /= self.mass

    def _reduce_sharp(self, logits: Float[Tensor, "n k"], block: slice) -> _Entries | None:
        """Add to `offset`; returns the shares that matter if they are few."""
        active, log_share = self._log_shares(logits)
        if active is not None:
            found = (log_share > least_exponent(log_share.dtype)).nonzero()
            if _FEW * found.shape[0] <= logits.numel():
                row, codes = found.unbind(dim=1)
                entries = _Entries(active[row], codes, log_share[row, codes])
                self.offset.index_add_(0, entries.tokens, torch.mul(*self._entry_terms(entries, block)))
                return entries
        share, factor = self._shares(log_share, block)
        _add(self.offset, active, factor.mul_(share).sum(dim=1))
        return None

    def spread(self, codebook: Tensor, dz: Float[Tensor, "n D"], dcodebook: Float[Tensor, "K D"], beta: int) -> None:
        """Add to the tokens' gradients, and add to (beta 1) or write (beta 0) those of the codes."""
        count, mass = dz.shape[0], self.mass[:, None]
        tile, pull = self.given.tile / mass, -self.pull[:, None]
        for number, block in enumerate(self.plan.blocks()):
            rows = self.memory.view(count, block)
            weights, gradient = rows[:count], rows[count:]
            if self.sharp:
                self._spread_sharp(weights, gradient, block, self.entries[number])
            gradient.addcmul_(weights, pull)
            dz.addmm_(gradient, codebook[block].to(dz.dtype))
            dcodebook[block].addmm_(gradient.t(), tile, beta=beta)
        dz.div_(mass)

    def _spread_sharp(
        self, weights: Float[Tensor, "n k"], gradient: Float[Tensor, "n k"], block: slice, entries: _Entries | None
    ) -> None:
        """Add mass times the part of q; without entries `weights` holds logits, and their weights afterwards."""
        if entries is not None:
            share, factor = self._entry_terms(entries, block)
            update = (factor - self.offset[entries.tokens]) * share * self.mass[entries.tokens]
            gradient.index_put_((entries.tokens, entries.codes), update, accumulate=True)
            return
        active, log_share = self._log_shares(weights)
        exp_(weights.sub_(self.given.maximum[:, None]))
        share, factor = self._shares(log_share, block)
        offset, scale = self.offset[:, None], self.mass[:, None]
        if active is not None:
            offset, scale = offset[active], scale[active]
        _add(gradient, active, factor.sub_(offset).mul_(share).mul_(scale))

    def _entry_terms(self, entries: _Entries, block: slice) -> tuple[Tensor, Tensor]:
        """Shares q and the factors of their gradient."""
        factor = self.given.slope[block][entries.codes] - self.given.sample * entries.log_share
        return entries.log_share.exp(), factor

    def _log_shares(self, logits: Float[Tensor, "n k"]) -> tuple[Tensor | None, Tensor]:
        """The rows to which this block matters, and their log q, in the first scratch buffer."""
        maximum, log_mass = self.given.maximum, self.given.sharp_log_mass
        active = active_rows((logits.amax(dim=1) - maximum) * self.inverse - log_mass)
        if active is not None:
            logits = _select(logits, active, self.scratch.view(1, *logits.shape))
            maximum, log_mass = maximum[active], log_mass[active]
        log_share = torch.sub(logits, maximum[:, None], out=self.scratch.view(0, *logits.shape))
        return active, log_share.mul_(self.inverse).sub_(log_mass[:, None])

    def _shares(self, log_share: Float[Tensor, "m k"], block: slice) -> tuple[Tensor, Tensor]:
        """q, in the second scratch buffer, and the factors of its gradient in place of log q."""
        share = exp_(log_share, out=self.scratch.view(1, *log_share.shape))
        return share, log_share.mul_(-self.given.sample).add_(self.given.slope[block])
