"""Precision and recall of generated images, by nearest-neighbour manifolds of features.

T. Kynkaanniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models", 2019; the ADM evaluator
uses k = 3 on pool_3 features. Shapes: N, M samples, D features.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Num

NEIGHBOURS = 3
_BLOCK = 2048
"""Rows per block of distances: 2048 x 10 000 float64 numbers are 160 MB."""


class PrecisionRecall(NamedTuple):
    """Both in [0, 1].

    Attributes:
        precision: share of generated samples inside the manifold of the reference.
        recall: share of reference samples inside the manifold of the generated.
    """

    precision: float
    recall: float


def precision_recall(
    reference: Num[np.ndarray, "n d"], generated: Num[np.ndarray, "m d"], *, neighbours: int = NEIGHBOURS
) -> PrecisionRecall:
    """Precision and recall of `generated` against `reference`.

    The manifold of a set is the union of balls around its samples, each reaching to the `neighbours`-th nearest other
    sample. Distances are float64 and computed in blocks: memory grows with N + M, time with (N + M)^2.

    Raises:
        ValueError: features of different widths, or sets of at most `neighbours` samples.
    """
    first, second = (np.asarray(features, np.float64) for features in (reference, generated))
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(f"features of shape {first.shape} and {second.shape}; expected (N, D) and (M, D)")
    if min(len(first), len(second)) <= neighbours:
        raise ValueError(
            f"{len(first)} and {len(second)} samples; precision and recall with {neighbours} neighbours need at least "
            f"{neighbours + 1} of each"
        )
    # Distances do not change, and small numbers lose fewer digits in |a|^2 + |b|^2 - 2ab.
    centre = first.mean(axis=0)
    first, second = first - centre, second - centre
    inside_first = _inside(second, first, _radii(first, neighbours))
    inside_second = _inside(first, second, _radii(second, neighbours))
    return PrecisionRecall(float(inside_first.mean()), float(inside_second.mean()))


def _radii(samples: Float64[np.ndarray, "n d"], neighbours: int) -> Float64[np.ndarray, " n"]:
    """Squared distance of every sample to its k-th nearest other."""
    radii = np.empty(len(samples))
    for start in range(0, len(samples), _BLOCK):
        rows = samples[start : start + _BLOCK]
        distances = _squared_distances(rows, samples)
        distances[np.arange(len(rows)), np.arange(start, start + len(rows))] = np.inf
        radii[start : start + len(rows)] = np.partition(distances, neighbours - 1, axis=1)[:, neighbours - 1]
    return radii


def _inside(
    samples: Float64[np.ndarray, "m d"], centres: Float64[np.ndarray, "n d"], radii: Float64[np.ndarray, " n"]
) -> Bool[np.ndarray, " m"]:
    """For each sample, if any ball holds it."""
    return np.concatenate(
        [
            (_squared_distances(samples[start : start + _BLOCK], centres) <= radii).any(axis=1)
            for start in range(0, len(samples), _BLOCK)
        ]
    )


def _squared_distances(
    rows: Float64[np.ndarray, "b d"], others: Float64[np.ndarray, "n d"]
) -> Float64[np.ndarray, "b n"]:
    distances = -2 * (rows @ others.T)
    distances += np.einsum("bd,bd->b", rows, rows)[:, None]
    distances += np.einsum("nd,nd->n", others, others)
    return np.maximum(distances, 0, out=distances)
