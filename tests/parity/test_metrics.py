"""Metrics and padding against the reference's figures."""

import numpy as np

from tests.support.golden_cases import STORED_FLOAT32, assert_close, channels_first, channels_last, uniform
from voken_common import metrics
from voken_common.pixels import pad_to_multiple

KINDS = ("metrics",)


def images(seed):
    a = np.clip(0.4 * uniform((2, 3, 40, 48), seed, "img"), -1, 1)
    b = np.clip(a + 0.1 * uniform((2, 3, 40, 48), seed, "noise"), -1, 1)
    return channels_last(a), channels_last(b)


def features(seed):
    first = uniform((200, 16), seed, "f1")
    return first, 0.7 * uniform((200, 16), seed, "f2") + 0.3 * first + 0.1


def test_psnr_and_ssim(case):
    a, b = images(case.seed)
    # The reference divides by 255 in float32, so its figures carry float32's rounding.
    assert_close(metrics.psnr(a, b), case.arrays["out/psnr"], "psnr", float32=STORED_FLOAT32)
    assert_close(metrics.ssim(b, a), case.arrays["out/ssim"], "ssim")


def test_frechet_distance(case):
    first, second = features(case.seed)
    distance = metrics.frechet_distance_of_features(first, second)
    assert_close(distance, case.arrays["out/fid"], "fid")
    assert_close(distance, case.arrays["out/frechet_video"], "frechet_video")


def test_padding(case):
    image = channels_last(uniform((1, 3, 37, 50), case.seed, "odd"))
    padded, region = pad_to_multiple(image, 16)
    assert_close(channels_first(padded), case.arrays["out/padded"], "padded")
    assert [region.top, region.left, region.bottom, region.right] == case.config["crop_region"]
    np.testing.assert_array_equal(region.crop(padded), image)
