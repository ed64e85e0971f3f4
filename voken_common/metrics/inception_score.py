"""Inception score, from class probabilities in a stream.

T. Salimans et al., "Improved Techniques for Training GANs", 2016: exp(E_x KL(p(y|x) || p(y))).
Shapes: N samples, L classes.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Num
from scipy.special import log_softmax, xlogy


class InceptionScore:
    """Gathers, per split, what the score needs: the sum of p log p, the sum of p, and the count.

    Sample i goes to split i mod `splits`; as samples come in random order, that is as good as consecutive splits and
    needs no total in advance.
    """

    def __init__(self, classes: int, splits: int = 10) -> None:
        if splits < 1:
            raise ValueError(f"{splits} splits; expected at least 1")
        self._counts: Float64[np.ndarray, " s"] = np.zeros(splits)
        self._negentropy: Float64[np.ndarray, " s"] = np.zeros(splits)
        self._marginal: Float64[np.ndarray, "s l"] = np.zeros((splits, classes))
        self._next = 0

    @property
    def count(self) -> int:
        """Samples seen."""
        return int(self._counts.sum())

    def update(self, probabilities: Num[np.ndarray, "n l"]) -> None:
        """Take a batch of class probabilities.

        Raises:
            ValueError: not (N, L), negative, or rows that do not sum to 1.
        """
        p = np.asarray(probabilities, np.float64)
        splits, classes = self._marginal.shape
        if p.ndim != 2 or p.shape[1] != classes:
            raise ValueError(f"probabilities of shape {p.shape}; expected (N, {classes})")
        if not (np.all(p >= 0) and np.allclose(p.sum(axis=1), 1, atol=1e-3)):
            raise ValueError("rows are not probabilities (non-negative, sum 1); pass logits to update_logits")
        split = (self._next + np.arange(len(p))) % splits
        self._next = (self._next + len(p)) % splits
        np.add.at(self._counts, split, 1)
        np.add.at(self._negentropy, split, xlogy(p, p).sum(axis=1))
        np.add.at(self._marginal, split, p)

    def update_logits(self, logits: Num[np.ndarray, "n l"]) -> None:
        """Take a batch of unnormalised log-probabilities."""
        self.update(np.exp(log_softmax(np.asarray(logits, np.float64), axis=-1)))

    def merge(self, other: InceptionScore) -> None:
        """Take what another accumulator of the same splits and classes saw."""
        if other._marginal.shape != self._marginal.shape:
            raise ValueError(f"(splits, classes) {other._marginal.shape}; expected {self._marginal.shape}")
        self._counts += other._counts
        self._negentropy += other._negentropy
        self._marginal += other._marginal

    def result(self) -> tuple[float, float]:
        """Mean and (population) standard deviation of the score over the splits.

        Raises:
            ValueError: a split has no sample.
        """
        if not self._counts.all():
            raise ValueError(f"{self.count} samples for {len(self._counts)} splits; expected at least one in each")
        mean = self._marginal / self._counts[:, None]
        scores = np.exp(self._negentropy / self._counts - xlogy(mean, mean).sum(axis=1))
        return float(scores.mean()), float(scores.std())
