"""Metrics against independent implementations and their own properties."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from voken_common import metrics, pixels


def random_images(seed, shape=(3, 24, 31, 3)):
    random = np.random.default_rng(seed)
    smooth = np.linspace(-1, 1, shape[2])[None, None, :, None] * random.uniform(0.2, 1, (shape[0], 1, 1, 1))
    a = np.clip(smooth + 0.2 * random.standard_normal(shape), -1, 1)
    return a, np.clip(a + 0.1 * random.standard_normal(shape), -1, 1)


def test_psnr_and_ssim_are_those_of_scikit_image():
    a, b = random_images(0)
    x, y = pixels.to_uint8(a), pixels.to_uint8(b)
    expected = [peak_signal_noise_ratio(i, j, data_range=255) for i, j in zip(x, y)]
    np.testing.assert_allclose(metrics.psnr(a, b), expected, rtol=1e-12)
    np.testing.assert_allclose(metrics.psnr(x, y), expected, rtol=1e-12)
    expected = [structural_similarity(i / 255, j / 255, data_range=1, channel_axis=-1) for i, j in zip(x, y)]
    np.testing.assert_allclose(metrics.ssim(a, b), expected, rtol=1e-9)


def test_identical_images():
    a, _ = random_images(1)
    assert np.all(np.isinf(metrics.psnr(a, a)))
    np.testing.assert_allclose(metrics.bounded_psnr(a, a), 10 * np.log10(12 * 255**2), rtol=1e-15)
    np.testing.assert_allclose(metrics.ssim(a, a), 1, rtol=1e-12)
    flat = np.full((1, 7, 7, 3), 200, np.uint8)
    np.testing.assert_allclose(metrics.ssim(flat, flat), 1, rtol=1e-9)


def test_image_metrics_say_what_is_wrong():
    a, _ = random_images(2)
    with pytest.raises(ValueError, match=r"\(3, 24, 31, 3\) and \(3, 24, 30, 3\); expected \(B, H, W, C\)"):
        metrics.psnr(a, a[:, :, :-1])
    with pytest.raises(ValueError, match="images of 6x31; SSIM needs at least 7x7"):
        metrics.ssim(a[:, :6], a[:, :6])
    with pytest.raises(TypeError, match="dtype int64; expected floats"):
        metrics.psnr(np.zeros((1, 8, 8, 3), np.int64), np.zeros((1, 8, 8, 3), np.int64))
    with pytest.raises(ValueError, match="NaN or infinite"):
        metrics.psnr(a, np.full_like(a, np.nan))


def test_bytes_are_truncated_and_round_trip():
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    as_float = pixels.from_uint8(every)
    assert as_float.dtype == np.float32
    assert (as_float.min(), as_float.max()) == (-1, 1)
    assert np.abs(pixels.to_uint8(as_float).astype(int) - every).max() <= 1
    values = np.array([-2.0, -1.0, 0.0, 0.999, 1.0, 3.0]).reshape(1, 1, 6, 1)
    assert pixels.to_uint8(values).ravel().tolist() == [0, 0, 127, 254, 255, 255]
    with pytest.raises(TypeError, match="expected uint8"):
        pixels.from_uint8(as_float)


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 4, 16]))
@settings(max_examples=30, deadline=None)
def test_padding_crops_back(height, width, multiple):
    image = np.random.default_rng(0).standard_normal((2, height, width, 3))
    padded, region = pixels.pad_to_multiple(image, multiple)
    assert padded.shape[1] % multiple == padded.shape[2] % multiple == 0
    assert padded.shape[1] - height < multiple
    np.testing.assert_array_equal(region.crop(padded), image)
    assert padded.sum() == pytest.approx(image.sum())


def test_padding_refuses_bytes():
    with pytest.raises(TypeError, match="from_uint8"):
        pixels.pad_to_multiple(np.zeros((1, 3, 3, 3), np.uint8))


def gathered(parts, features):
    statistics = metrics.GaussianStatistics(features)
    for part in parts:
        statistics.update(part)
    return statistics


@given(st.lists(st.integers(0, 7), min_size=1, max_size=6), st.integers(0, 5), st.floats(-1e4, 1e4))
@settings(max_examples=30, deadline=None)
def test_streaming_statistics_are_those_of_the_whole(sizes, split, offset):
    random = np.random.default_rng(len(sizes))
    parts = [random.standard_normal((size, 5)) * [1, 2, 3, 4, 5] + offset for size in [2, *sizes]]
    whole = np.concatenate(parts)
    first, second = gathered(parts[:split], 5), gathered(parts[split:], 5)
    first.merge(second)
    assert first.count == len(whole)
    np.testing.assert_allclose(first.mean, whole.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(first.covariance, np.cov(whole, rowvar=False), rtol=1e-8, atol=1e-9)


def test_frechet_distance_by_the_textbook(tmp_path):
    random = np.random.default_rng(0)
    a, b = random.standard_normal((300, 12)), random.standard_normal((200, 12)) @ random.standard_normal((12, 12)) + 1
    first, second = gathered([a], 12), gathered([b[:90], b[90:]], 12)
    root = scipy.linalg.sqrtm(first.covariance @ second.covariance).real
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(first.covariance + second.covariance - 2 * root)
    assert metrics.frechet_distance(first, second) == pytest.approx(expected, rel=1e-10)
    assert metrics.frechet_distance(second, first) == pytest.approx(expected, rel=1e-10)
    assert metrics.frechet_distance(first, first) == pytest.approx(0, abs=1e-9)
    first.save(tmp_path / "reference.npz")
    again = metrics.GaussianStatistics.load(tmp_path / "reference.npz")
    assert metrics.frechet_distance(again, second) == metrics.frechet_distance(first, second)


def test_frechet_distance_with_fewer_samples_than_features():
    random = np.random.default_rng(0)
    a, b = random.standard_normal((5, 30)), random.standard_normal((4, 30))
    # Both covariances are singular; the trace of the root is the nuclear norm of the product of the centred samples.
    x, y = (a - a.mean(0)) / 2, (b - b.mean(0)) / np.sqrt(3)
    cross = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.sum(x**2) + np.sum(y**2) - 2 * cross
    assert metrics.frechet_distance_of_features(a, b) == pytest.approx(expected, rel=1e-6)


def test_statistics_say_what_is_wrong(tmp_path):
    statistics = metrics.GaussianStatistics(3)
    with pytest.raises(ValueError, match="0 samples; a covariance needs at least 2"):
        _ = statistics.covariance
    with pytest.raises(ValueError, match=r"shape \(2, 4\); expected \(N, 3\)"):
        statistics.update(np.zeros((2, 4)))
    with pytest.raises(ValueError, match="NaN or infinite"):
        statistics.update(np.full((2, 3), np.inf))
    with pytest.raises(ValueError, match="expected 3"):
        statistics.merge(metrics.GaussianStatistics(4))
    with pytest.raises(ValueError, match="the same network's"):
        metrics.frechet_distance(statistics, metrics.GaussianStatistics(4))
    np.savez(tmp_path / "x.npz", mean=np.zeros(3))
    with pytest.raises(ValueError, match="has no count, scatter"):
        metrics.GaussianStatistics.load(tmp_path / "x.npz")


def test_inception_score():
    random = np.random.default_rng(0)
    logits = 3 * random.standard_normal((60, 7))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    scores = [np.exp(np.mean(np.sum(q * (np.log(q) - np.log(q.mean(0))), 1))) for q in (p[:25], p[25:50], p[50:])]
    score = metrics.InceptionScore(7, split_size=25)
    score.update_logits(logits[:10])
    score.update(p[10:58])
    score.update(p[58:])
    assert score.count == 60
    assert score.result() == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-10)
    certain = metrics.InceptionScore(7)
    certain.update(np.eye(7))
    assert certain.result() == pytest.approx((7, 0))
    with pytest.raises(ValueError, match="update_logits"):
        certain.update(logits)
    with pytest.raises(ValueError, match="no samples"):
        metrics.InceptionScore(7).result()
    with pytest.raises(ValueError, match="split_size is 0"):
        metrics.InceptionScore(7, split_size=0)


def test_codebook_usage_and_perplexity():
    counter, other = metrics.CodebookCounter(8), metrics.CodebookCounter(8)
    assert (counter.usage, counter.perplexity) == (0, 0)
    counter.update(np.array([[0, 1], [2, 3]], np.int32))
    assert (counter.usage, counter.perplexity) == (0.5, pytest.approx(4))
    other.update(np.zeros((3, 100), np.int64))
    counter.merge(other)
    assert counter.counts.tolist() == [301, 1, 1, 1, 0, 0, 0, 0]
    p = np.array([301, 1, 1, 1]) / 304
    assert counter.perplexity == pytest.approx(np.exp(-np.sum(p * np.log(p))))
    with pytest.raises(ValueError, match="ids from -1 to 8; expected 0 to 7"):
        counter.update(np.array([-1, 8]))
    with pytest.raises(TypeError, match="dtype float64; expected integers"):
        counter.update(np.array([1.0]))


def test_average():
    average, other = metrics.Average(), metrics.Average()
    with pytest.raises(ValueError, match="no values"):
        _ = average.mean
    average.update(np.array([1.0, 2.0, 6.0]))
    other.update(5.0)
    average.merge(other)
    assert (average.mean, average.count) == (3.5, 4)
