"""FID's Inception, I3D and the metrics of generators on recipe weights, in JAX."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.golden_cases import FORWARD_FLOAT32, assert_close, channels_first, channels_last, uniform, weight
from tests.support.metric_cases import check_feature_metrics, check_shapes, sample_images, small_image
from voken_common.checkpoints.feature_networks.i3d import I3D
from voken_common.checkpoints.feature_networks.inception import INCEPTION
from voken_jax.models.metrics.feature_network import place_weights, resize_bilinear
from voken_jax.models.metrics.i3d import i3d_logits
from voken_jax.models.metrics.inception import inception_features, inception_input, inception_stages

KINDS = ["inception_fid", "i3d", "generation_metrics"]
RESIZED = 1e-5


def kinds(*names):
    def mark(function):
        function.kinds = names
        return function

    return mark


@functools.lru_cache(maxsize=2)
def weights_of(network, seed, precision):
    arrays = {key: weight(key, shape, seed) for key, shape in network.shapes().items()}
    return place_weights(arrays, precision)


def tolerance(precision):
    return FORWARD_FLOAT32 if precision == "float32" else None


features = jax.jit(inception_features, static_argnames="resize")


@pytest.mark.slow
@kinds("inception_fid")
def test_inception(case, precision):
    check_shapes(INCEPTION, case.config["shapes"])
    weights = weights_of(INCEPTION, case.seed, precision)
    unit = np.clip(0.25 * uniform(case.config["shape"], case.seed, "x") + 0.5, 0, 1)
    images = jnp.asarray(channels_last(2 * unit - 1), precision)

    @jax.jit
    def program(weights, images):
        stages = inception_stages(weights, inception_input(images, "half_pixel"))
        means = {f"block{i}_mean": stages[f"block{i}"].mean(axis=(1, 2)) for i in range(3)}
        return means | {"pool3": stages["Mixed_7"].mean(axis=(1, 2))}

    for name, value in program(weights, images).items():
        assert_close(value, case.arrays[f"out/{name}"], name, tolerance(precision))
    assert_close(features(weights, images).pool3, case.arrays["out/pool3"], "pool3", tolerance(precision))


@pytest.mark.slow
@kinds("i3d")
def test_i3d(case, precision):
    check_shapes(I3D, case.config["shapes"])
    weights = weights_of(I3D, case.seed, precision)
    clip = np.clip(0.5 * uniform(case.config["shape"], case.seed, "x"), -1, 1)
    logits = jax.jit(i3d_logits)(weights, jnp.asarray(channels_last(clip), precision))
    assert_close(logits, case.arrays["out/logits"], "logits", tolerance(precision))


@pytest.mark.slow
@kinds("generation_metrics")
def test_features_of_samples(case, precision):
    weights = weights_of(INCEPTION, case.seed, precision)
    found = features(weights, jnp.asarray(sample_images(case)), resize="tensorflow1")
    for name, value in (("pool3", found.pool3), ("logits_unbiased", found.logits), ("spatial", found.spatial)):
        assert_close(
            value, case.arrays[f"out/{name}"], name, float32=FORWARD_FLOAT32 if precision == "float32" else RESIZED
        )
    image, side = small_image(case)
    resized = resize_bilinear(jnp.asarray(image, precision), side, "tensorflow1")
    assert_close(channels_first(resized), case.arrays["out/resized"], "resized", float32=RESIZED)


@kinds("generation_metrics")
def test_metrics_of_features(case):
    check_feature_metrics(case)
