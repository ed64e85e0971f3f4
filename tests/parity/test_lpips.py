"""LPIPS with VGG16 features: value and gradient on recipe weights."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity.test_trajectories import lpips_for
from tests.support.golden_cases import (
    FORWARD_FLOAT32,
    GRADIENT_FLOAT32,
    assert_close,
    channels_first,
    channels_last,
    uniform,
)
from tests.support.objectives import evaluate

KINDS = ["lpips_vgg"]


def test_value_and_gradient(case, precision):
    network, weights = lpips_for(case.seed, precision)
    spec = case.config
    images = [channels_last(uniform(spec["shape"], case.seed, name) * spec["scale"]) for name in spec["inputs"]]
    x, y = (jnp.asarray(image, precision) for image in images)

    # The weights are an argument: as constants they would be folded for half a minute.
    def objective(y, weights):
        value = network.bind(weights)(x, y)
        return evaluate(spec["objective"], value=value), value

    grad, value = jax.jit(jax.grad(objective, has_aux=True))(y, weights)
    float32 = precision == "float32"
    expected = case.arrays["out/value"]
    assert_close(np.reshape(value, expected.shape), expected, "value", FORWARD_FLOAT32 if float32 else None)
    assert_close(channels_first(grad), case.arrays["grad/y"], "gradient", GRADIENT_FLOAT32 if float32 else None)
