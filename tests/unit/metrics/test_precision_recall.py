"""Precision and recall against brute force, and the bilinear resizes against their definitions."""

import sys

import numpy as np
import pytest

from voken_common import metrics
from voken_common.metrics.resize import resize_bilinear, taps


def brute_force(reference, generated, k):
    def radii(samples):
        return [sorted(np.linalg.norm(samples - x, axis=1))[k] for x in samples]

    def share(samples, centres):
        balls = radii(centres)
        inside = [any(np.linalg.norm(x - c) <= r for c, r in zip(centres, balls)) for x in samples]
        return np.mean(inside)

    return share(generated, reference), share(reference, generated)


@pytest.mark.parametrize("block", [7, 2048])
def test_against_brute_force(monkeypatch, block):
    monkeypatch.setattr(sys.modules["voken_common.metrics.precision_recall"], "_BLOCK", block)
    random = np.random.default_rng(3)
    reference = random.standard_normal((60, 5)) + 100
    generated = 0.7 * random.standard_normal((45, 5)) + 100.3
    found = metrics.precision_recall(reference, generated)
    assert tuple(found) == brute_force(reference, generated, 3)
    assert 0 < found.recall < found.precision <= 1


def test_what_cannot_be_measured():
    with pytest.raises(ValueError, match="need at least 4"):
        metrics.precision_recall(np.zeros((3, 2)), np.zeros((9, 2)))
    with pytest.raises(ValueError, match=r"\(9, 2\) and \(9, 3\)"):
        metrics.precision_recall(np.zeros((9, 2)), np.zeros((9, 3)))


def test_resizes_differ_by_half_a_pixel():
    image = np.arange(4, dtype=np.float64).reshape(1, 4, 1, 1).repeat(4, axis=2)
    np.testing.assert_allclose(resize_bilinear(image, 2, "half_pixel")[0, :, 0, 0], [0.5, 2.5])
    np.testing.assert_allclose(resize_bilinear(image, 2, "tensorflow1")[0, :, 0, 0], [0, 2])
    np.testing.assert_allclose(resize_bilinear(image, 8, "half_pixel")[0, :3, 0, 0], [0, 0.25, 0.75])
    with pytest.raises(ValueError, match="expected one of half_pixel, tensorflow1"):
        taps(4, 2, "bicubic")
