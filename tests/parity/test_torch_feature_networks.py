"""FID's Inception, I3D, LPIPS' siblings and features of samples on recipe weights, in PyTorch."""

import functools

import numpy as np
import pytest
import torch

from tests.support.golden_cases import FORWARD_FLOAT32, assert_close, channels_first, channels_last, uniform, weight
from tests.support.metric_cases import sample_images, small_image
from voken_common.checkpoints.feature_networks.i3d import I3D
from voken_common.checkpoints.feature_networks.inception import INCEPTION
from voken_torch.models.metrics.feature_network import resize_bilinear
from voken_torch.models.metrics.i3d import VideoNetwork
from voken_torch.models.metrics.inception import Inception, inception_input

KINDS = ["inception_fid", "i3d", "generation_metrics"]
RESIZED = 1e-5


def kinds(*names):
    def mark(function):
        function.kinds = names
        return function

    return mark


@pytest.fixture(params=["float64", "float32"])
def precision(request):
    return request.param


def tolerance(precision):
    return FORWARD_FLOAT32 if precision == "float32" else None


@functools.lru_cache(maxsize=2)
def built(kind, network, seed, precision):
    module = kind().to(getattr(torch, precision))
    module.load({key: weight(key, shape, seed) for key, shape in network.shapes().items()})
    return module


@kinds("inception_fid")
def test_inception(case, precision):
    network = built(Inception, INCEPTION, case.seed, precision)
    unit = np.clip(0.25 * uniform(case.config["shape"], case.seed, "x") + 0.5, 0, 1)
    images = torch.tensor(2 * unit - 1, dtype=getattr(torch, precision))
    stages = network.stages(inception_input(images, "half_pixel"))
    for i in range(3):
        mean = stages[f"block{i}"].mean(dim=(2, 3))
        assert_close(mean, case.arrays[f"out/block{i}_mean"], f"block{i}", tolerance(precision))
    assert_close(network(images).pool3, case.arrays["out/pool3"], "pool3", tolerance(precision))


@pytest.mark.slow
@kinds("i3d")
def test_i3d(case, precision):
    network = built(VideoNetwork, I3D, case.seed, precision)
    clip = np.clip(0.5 * uniform(case.config["shape"], case.seed, "x"), -1, 1)
    logits = network(torch.tensor(clip, dtype=getattr(torch, precision)))
    assert_close(logits, case.arrays["out/logits"], "logits", tolerance(precision))


@kinds("generation_metrics")
def test_features_of_samples(case, precision):
    network = built(Inception, INCEPTION, case.seed, precision)
    images = torch.tensor(channels_first(sample_images(case)))
    found = network(images, resize="tensorflow1")
    for name, value in (("pool3", found.pool3), ("logits_unbiased", found.logits), ("spatial", found.spatial)):
        allowed = FORWARD_FLOAT32 if precision == "float32" else RESIZED
        assert_close(value, case.arrays[f"out/{name}"], name, float32=allowed)
    image, side = small_image(case)
    small = torch.tensor(channels_first(image), dtype=getattr(torch, precision))
    assert_close(resize_bilinear(small, side, "tensorflow1"), case.arrays["out/resized"], "resized", float32=RESIZED)


def test_half_pixel_resize_is_the_shared_definition():
    from voken_common.metrics.resize import resize_bilinear as shared

    images = np.random.default_rng(0).standard_normal((2, 17, 23, 3))
    ours = resize_bilinear(torch.tensor(channels_first(images)), 31, "half_pixel")
    np.testing.assert_allclose(channels_last(ours), shared(images, 31), atol=1e-12)
