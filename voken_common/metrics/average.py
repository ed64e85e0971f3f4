"""The mean of per-sample values that arrive in batches of any size."""

from __future__ import annotations

import numpy as np
from jaxtyping import Num


class Average:
    """Sum and count in float64; every sample weighs the same, also those of a smaller last batch."""

    def __init__(self) -> None:
        self.count = 0
        self._sum = 0.0

    def update(self, values: float | Num[np.ndarray, "..."]) -> None:
        """Take one value or an array of them."""
        values = np.asarray(values, np.float64)
        self.count += values.size
        self._sum += float(values.sum())

    def merge(self, other: Average) -> None:
        """Take what another accumulator saw."""
        self.count += other.count
        self._sum += other._sum

    @property
    def mean(self) -> float:
        """The mean so far.

        Raises:
            ValueError: no values yet.
        """
        if not self.count:
            raise ValueError("the mean of no values; expected at least one update")
        return self._sum / self.count
