"""Usage and perplexity of a codebook, from the ids of a data set."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int, Int64


class CodebookCounter:
    """Counts how often each of `codes` codes was used."""

    def __init__(self, codes: int) -> None:
        self.counts: Int64[np.ndarray, " k"] = np.zeros(codes, np.int64)

    def update(self, ids: Int[np.ndarray, "..."]) -> None:
        """Take ids of any shape.

        Raises:
            TypeError: not integers.
            ValueError: an id outside 0..codes-1.
        """
        flat = np.asarray(ids).reshape(-1)
        if flat.size and not np.issubdtype(flat.dtype, np.integer):
            raise TypeError(f"ids of dtype {flat.dtype}; expected integers")
        if flat.size and not 0 <= flat.min() <= flat.max() < self.counts.size:
            raise ValueError(f"ids from {flat.min()} to {flat.max()}; expected 0 to {self.counts.size - 1}")
        self.counts += np.bincount(flat.astype(np.int64), minlength=self.counts.size)

    def add_counts(self, ids: Int[np.ndarray, " u"], counts: Int[np.ndarray, " u"]) -> None:
        """Take distinct ids and how often each was used.

        Raises:
            ValueError: an id outside 0..codes-1, or one that comes twice.
        """
        if len(np.unique(ids)) != len(ids):
            raise ValueError("an id comes twice; expected distinct ids with their counts")
        if len(ids) and not 0 <= np.min(ids) <= np.max(ids) < self.counts.size:
            raise ValueError(f"ids from {np.min(ids)} to {np.max(ids)}; expected 0 to {self.counts.size - 1}")
        self.counts[np.asarray(ids)] += np.asarray(counts, np.int64)

    def merge(self, other: CodebookCounter) -> None:
        """Take what another counter of the same codebook saw."""
        if other.counts.size != self.counts.size:
            raise ValueError(f"counts of {other.counts.size} codes; expected {self.counts.size}")
        self.counts += other.counts

    @property
    def usage(self) -> float:
        """See `codebook_usage`."""
        return codebook_usage(self.counts)

    @property
    def perplexity(self) -> float:
        """See `codebook_perplexity`."""
        return codebook_perplexity(self.counts)


def codebook_usage(counts: Int[np.ndarray, " k"]) -> float:
    """Distinct ids over codebook size, in [0, 1]."""
    return float(np.count_nonzero(counts) / np.size(counts))


def codebook_perplexity(counts: Int[np.ndarray, " k"]) -> float:
    """Exponential of the ids' entropy: how many equally frequent codes would say as much; 1 to codes, 0 for no ids."""
    used = np.asarray(counts, np.float64)[np.asarray(counts) > 0]
    if not used.size:
        return 0.0
    p = used / used.sum()
    return float(np.exp(-(p * np.log(p)).sum()))
