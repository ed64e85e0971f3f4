"""Inception score, from class probabilities in a stream.

T. Salimans et al., "Improved Techniques for Training GANs", 2016: exp(E_x KL(p(y|x) || p(y))), here as the ADM
evaluator takes it: over consecutive splits of 5000 samples, whose scores are averaged; a smaller last split counts as
one.
Shapes: N samples, L classes.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Num
from scipy.special import log_softmax, xlogy

SPLIT = 5000
"""Samples per split of published scores."""


class InceptionScore:
    """Gathers, per split, what the score needs: the sum of p log p, the sum of p, and the count.

    Args:
        classes: L.
        split_size: samples per split, in the order in which they arrive.
    """

    def __init__(self, classes: int, split_size: int = SPLIT) -> None:
        if split_size < 1:
            raise ValueError(f"split_size is {split_size}; expected at least 1")
        self._classes, self._split_size = classes, split_size
        self._counts: list[int] = []
        self._negentropy: list[float] = []
        self._marginal: list[Float64[np.ndarray, " l"]] = []

    @property
    def count(self) -> int:
        """Samples seen."""
        return sum(self._counts)

    def update(self, probabilities: Num[np.ndarray, "n l"]) -> None:
        """Take a batch of class probabilities.

        Raises:
            ValueError: not (N, L), negative, or rows that do not sum to 1.
        """
        p = np.asarray(probabilities, np.float64)
        if p.ndim != 2 or p.shape[1] != self._classes:
            raise ValueError(f"probabilities of shape {p.shape}; expected (N, {self._classes})")
        if not (np.all(p >= 0) and np.allclose(p.sum(axis=1), 1, atol=1e-3)):
            raise ValueError("rows are not probabilities (non-negative, sum 1); pass logits to update_logits")
        while len(p):
            if not self._counts or self._counts[-1] == self._split_size:
                self._counts.append(0)
                self._negentropy.append(0.0)
                self._marginal.append(np.zeros(self._classes))
            part, p = np.split(p, [min(self._split_size - self._counts[-1], len(p))])
            self._counts[-1] += len(part)
            self._negentropy[-1] += float(xlogy(part, part).sum())
            self._marginal[-1] += part.sum(axis=0)

    def update_logits(self, logits: Num[np.ndarray, "n l"]) -> None:
        """Take a batch of unnormalised log-probabilities."""
        self.update(np.exp(log_softmax(np.asarray(logits, np.float64), axis=-1)))

    def result(self) -> tuple[float, float]:
        """Mean and (population) standard deviation of the score over the splits.

        Raises:
            ValueError: no samples.
        """
        if not self._counts:
            raise ValueError("the Inception Score of no samples; expected at least one")
        counts = np.asarray(self._counts, np.float64)
        mean = np.stack(self._marginal) / counts[:, None]
        scores = np.exp(np.asarray(self._negentropy) / counts - xlogy(mean, mean).sum(axis=1))
        return float(scores.mean()), float(scores.std())
