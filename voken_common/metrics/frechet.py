"""Frechet distance between two sets of features, from statistics that are gathered in a stream.

M. Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", 2017 (FID);
T. Unterthiner et al., "Towards Accurate Generative Models of Video", 2018 (FVD). Which features they are is the
caller's business. Everything here is float64: the distance is a small difference of large traces.
Shapes: N samples, D features.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Float64, Num

from voken_common.untrusted.archives import require_modest


class Gaussian(Protocol):
    """Mean and covariance, however they were come by."""

    @property
    def mean(self) -> Float64[np.ndarray, " d"]:
        """Length of the features."""

    @property
    def covariance(self) -> Float64[np.ndarray, "d d"]:
        """Unbiased."""


class Moments(NamedTuple):
    """A Gaussian that was read from a file of statistics."""

    mean: Float64[np.ndarray, " d"]
    covariance: Float64[np.ndarray, "d d"]


class GaussianStatistics:
    """Mean and covariance of features seen so far; needs D x D numbers whatever the number of samples.

    Updates and merges combine centred sums (Chan, Golub and LeVeque, 1979), which lose no digits to a large mean.
    """

    def __init__(self, features: int) -> None:
        self.count = 0
        self._mean: Float64[np.ndarray, " d"] = np.zeros(features)
        self._scatter: Float64[np.ndarray, "d d"] = np.zeros((features, features))

    @property
    def mean(self) -> Float64[np.ndarray, " d"]:
        """Mean of the features; zeros before the first."""
        return self._mean

    def update(self, features: Num[np.ndarray, "n d"]) -> None:
        """Take a batch.

        Raises:
            ValueError: not (N, D), or not finite.
        """
        batch = np.asarray(features, np.float64)
        if batch.ndim != 2 or batch.shape[1] != self.mean.size:
            raise ValueError(f"features of shape {batch.shape}; expected (N, {self.mean.size})")
        if not np.isfinite(batch).all():
            raise ValueError("features hold NaN or infinite values: the network or its input is broken")
        if len(batch):
            mean = batch.mean(axis=0)
            centred = batch - mean
            self._combine(len(batch), mean, centred.T @ centred)

    def merge(self, other: GaussianStatistics) -> None:
        """Take what another accumulator saw, for example on another host."""
        if other.mean.size != self.mean.size:
            raise ValueError(f"statistics of {other.mean.size} features; expected {self.mean.size}")
        if other.count:
            self._combine(other.count, other.mean, other._scatter)

    def _combine(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        total = self.count + count
        gap = mean - self.mean
        self._scatter += scatter + np.outer(gap, gap) * (self.count * count / total)
        self._mean = self._mean + gap * (count / total)
        self.count = total

    @property
    def covariance(self) -> Float64[np.ndarray, "d d"]:
        """Unbiased covariance.

        Raises:
            ValueError: fewer than two samples.
        """
        if self.count < 2:
            raise ValueError(f"{self.count} samples; a covariance needs at least 2")
        return self._scatter / (self.count - 1)

    def save(self, path: str | Path) -> None:
        """Write to an .npz file, so that the statistics of a reference set are computed once."""
        with Path(path).open("wb") as file:
            np.savez(file, count=self.count, mean=self.mean, scatter=self._scatter)

    @classmethod
    def load(cls, path: str | Path) -> GaussianStatistics:
        """Read what `save` wrote."""
        require_modest(path)
        with np.load(path, allow_pickle=False) as data:
            if missing := {"count", "mean", "scatter"} - set(data.files):
                raise ValueError(
                    f"{path} has no {', '.join(sorted(missing))}; expected a file of GaussianStatistics.save"
                )
            statistics = cls(data["mean"].size)
            statistics._combine(int(data["count"]), data["mean"], data["scatter"])
        return statistics


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1^(1/2) S2 S1^(1/2))^(1/2)), at least 0.

    The symmetric form has a real square root for every pair of covariances, singular ones included (fewer samples than
    features), and its trace equals that of the root of S1 S2.
    """
    if first.mean.size != second.mean.size:
        raise ValueError(f"{first.mean.size} and {second.mean.size} features; expected the same network's for both")
    gap = first.mean - second.mean
    root = _symmetric_root(first.covariance)
    cross = np.linalg.eigvalsh(root @ second.covariance @ root)
    trace = np.trace(first.covariance) + np.trace(second.covariance) - 2 * np.sqrt(np.maximum(cross, 0)).sum()
    return max(float(gap @ gap + trace), 0.0)


def frechet_distance_of_features(first: Num[np.ndarray, "n d"], second: Num[np.ndarray, "m d"]) -> float:
    """Compute the statistics of features that fit into memory."""
    statistics = []
    for features in (first, second):
        statistics.append(GaussianStatistics(np.shape(features)[-1]))
        statistics[-1].update(features)
    return frechet_distance(*statistics)


def _symmetric_root(matrix: np.ndarray) -> np.ndarray:
    """Square root of a positive semidefinite matrix; eigenvalues below 0 are rounding."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
