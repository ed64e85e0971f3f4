"""Codebook statistics over any number of batches: counts, usage and perplexity from one counter per code.

Shapes: K codes. Nothing of size tokens x codes is formed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class CodebookStatistics(NamedTuple):
    """Counts of each code."""

    counts: Int[Tensor, " K"]


def init_statistics(codes: int, device: torch.device | str = "cpu") -> CodebookStatistics:
    """No code chosen yet.

    Raises:
        ValueError: codes is not positive.
    """
    if codes < 1:
        raise ValueError(f"found {codes} codes; a codebook has at least one")
    return CodebookStatistics(torch.zeros(codes, dtype=torch.int64, device=device))


def update_statistics(statistics: CodebookStatistics, indices: Int[Tensor, "*batch"]) -> CodebookStatistics:
    """Count the codes of one batch. Numbers outside [0, K) are ignored, so -1 may mark padding."""
    codes = statistics.counts.shape[0]
    flat = indices.reshape(-1).long()
    flat = torch.where((flat >= 0) & (flat < codes), flat, codes)
    counted = torch.zeros(codes + 1, dtype=torch.int64, device=flat.device)
    counted.scatter_add_(0, flat, torch.ones_like(flat))
    return CodebookStatistics(statistics.counts + counted[:codes].to(statistics.counts.device))


def merge_statistics(first: CodebookStatistics, second: CodebookStatistics) -> CodebookStatistics:
    """Statistics of both sets of batches together, from two processes or two halves of an epoch."""
    return CodebookStatistics(first.counts + second.counts)


def usage(statistics: CodebookStatistics) -> Float[Tensor, ""]:
    """Share of the codes that were chosen at least once, in [0, 1]."""
    return (statistics.counts > 0).float().mean()


def perplexity(statistics: CodebookStatistics) -> Float[Tensor, ""]:
    """Exponential of the entropy of the counts: the size of an evenly used codebook that is as diverse, in [1, K].

    Zero when nothing has been counted.
    """
    counts = statistics.counts.float()
    total = counts.sum()
    share = counts / total.clamp(min=1)
    entropy = -torch.special.xlogy(share, share).sum()
    return torch.where(total > 0, entropy.exp(), torch.zeros_like(total))
