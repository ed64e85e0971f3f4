"""Uncertainty of numbers: bootstrap intervals of means, and the bias of Frechet distances.

A Frechet distance of N samples is too large by about c / N, with a c of its own for every model (Binkowski et al.,
2018; Chong and Forsyth, "Effectively Unbiased FID and Inception Score and where to find them", 2020). Distances of
growing subsets, fitted by a line in 1 / N, give the value at 1 / N = 0.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Num

from voken_common.evaluation.shards import Shards
from voken_common.metrics.frechet import Gaussian, GaussianStatistics, frechet_distance

_BLOCK = 1 << 22


def bootstrap(
    values: Num[np.ndarray, " n"], *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """The interval that holds the mean in `level` of the resamples with replacement.

    Args:
        values: one per image, finite.
        resamples: how many.
        level: in (0, 1).
        seed: of the draws.
    """
    values = np.asarray(values, np.float64)
    generator, means = np.random.default_rng(seed), np.empty(resamples)
    step = max(1, _BLOCK // len(values))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        means[start : start + rows] = values[generator.integers(0, len(values), (rows, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def extrapolate(sizes: Num[np.ndarray, " k"], distances: Num[np.ndarray, " k"]) -> float:
    """Extrapolate the line through (1 / size, distance) to 1 / size = 0."""
    slope_and_end = np.polyfit(1 / np.asarray(sizes, np.float64), np.asarray(distances, np.float64), 1)
    return float(slope_and_end[1])


def extrapolated_distance(
    shards: Shards,
    samples: int,
    *,
    first: str = "original_pool3",
    second: str = "pool3",
    reference: Gaussian | None = None,
    points: int = 8,
    seed: int = 0,
) -> float:
    """FID-infinity: the Frechet distance extrapolated from nested random subsets of half to all samples.

    Args:
        shards: measured.
        samples: how many there are.
        first, second: names of the features that are compared.
        reference: instead of `first`: its statistics, the same for every subset.
        points: sizes of subsets.
        seed: of the subsets.

    Raises:
        ValueError: too few samples.
    """
    if samples < 2 * points:
        raise ValueError(f"{samples} samples; extrapolating the Frechet distance needs at least {2 * points}")
    sizes = np.unique(np.linspace(samples // 2, samples, points).astype(int))
    part = np.searchsorted(sizes, np.random.default_rng(seed).permutation(samples), side="right")
    names = (second,) if reference is not None else (first, second)
    sums: dict[tuple[str, int], GaussianStatistics] = {}
    start = 0
    for shard in shards:
        count = len(shard["rank"])
        where, start = part[start : start + count], start + count
        for name in names:
            for number in np.unique(where):
                key = (name, int(number))
                sums.setdefault(key, GaussianStatistics(shard[name].shape[1])).update(shard[name][where == number])
    distances = []
    total = {name: GaussianStatistics(sums[name, 0].mean.size) for name in names}
    for number in range(len(sizes)):
        for name in names:
            total[name].merge(sums[name, number])
        distances.append(frechet_distance(reference or total[first], total[second]))
    return extrapolate(sizes, np.array(distances))
