"""Discriminators: logits in both modes, gradients, and the statistics one training pass leaves."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.support.golden_cases import (
    FORWARD_FLOAT32,
    assert_close,
    assert_numbers,
    channels_first,
    channels_last,
    torch_shape,
    weight,
    weights_for,
)
from tests.support.objectives import evaluate
from voken_common.checkpoints import weight_names as names
from voken_common.config.schema.adversarial import BlurConfig, PatchGANConfig
from voken_common.config.schema.video import PatchGAN3DConfig
from voken_jax.models.discriminator import binomial_kernel, build_discriminator
from voken_jax.models.functional import Network, buffers_of
from voken_jax.models.layers import Policy

KINDS = ["discriminator_patchgan", "discriminator_patchgan3d", "discriminator_blur"]

BLUR_KERNEL = ".1.kernel"


def network_of(case, dtype):
    spec = case.config["config"]
    if case.kind == "discriminator_patchgan":
        config = PatchGANConfig(channels=spec.get("ndf", 64), layers=spec.get("n_layers", 3))
    elif case.kind == "discriminator_patchgan3d":
        config = PatchGAN3DConfig(channels=spec.get("ndf", 64), layers=spec.get("n_layers", 4))
    else:
        config = BlurConfig(
            hidden_channels=spec.get("hidden_channels", 128),
            stages=spec.get("num_stages", 4),
            blur_resample=spec.get("blur_resample", True),
            blur_kernel_size=spec.get("blur_kernel_size", 4),
        )
    policy, channels = Policy(jnp.dtype(dtype), jnp.dtype(dtype)), case.config["input"]["shape"][1]
    return Network(lambda rngs: build_discriminator(config, channels, policy=policy, rngs=rngs))


def blur_rule(key, shape, seed):
    """The recipe, but for blur kernels, which are constants."""
    return binomial_kernel(shape[-1]).reshape(shape) if key.endswith(BLUR_KERNEL) else weight(key, shape, seed)


def setup(case, dtype):
    """The network with recipe weights."""
    network = network_of(case, dtype)
    parameters = weights_for(network.parameters, case.seed, dtype=dtype)
    buffers = weights_for(network.buffers, case.seed, dtype=dtype, rule=blur_rule)
    return network, parameters, buffers, jnp.asarray(channels_last(case.input()), dtype)


def passes(network, parameters, buffers, x):
    """Logits of a training pass, of an evaluation pass after it, and the statistics in between."""
    model = network.bind(parameters, buffers)
    logits = model(x, train=True)
    moved = buffers_of(model)
    return logits, network.bind(parameters, moved)(x, train=False), moved


def test_names_and_shapes(case):
    network = network_of(case, "float32")
    leaves = network.parameters | network.buffers
    found = {names.to_torch_name(path): list(torch_shape(path, leaf.shape)) for path, leaf in leaves.items()}
    assert found == case.config["shapes"]


def test_forward_float32(case):
    network, *arguments = setup(case, "float32")
    logits, evaluated, _ = jax.jit(lambda *a: passes(network, *a))(*arguments)
    assert_close(channels_first(logits), case.arrays["out/train_logits"], "logits", FORWARD_FLOAT32)
    expected = case.arrays["out/eval_logits_after_one_train_step"]
    assert_close(channels_first(evaluated), expected, "logits in evaluation mode", FORWARD_FLOAT32)


def test_gradients_and_statistics_float64(case, x64):
    network, parameters, buffers, x = setup(case, "float64")

    def objective(parameters, x, buffers):
        logits, evaluated, moved = passes(network, parameters, buffers, x)
        return evaluate(case.config["objective"], train_logits=logits), (logits, evaluated, moved)

    differentiate = jax.jit(jax.grad(objective, argnums=(0, 1), has_aux=True))
    (grads, grad_x), (logits, evaluated, moved) = differentiate(parameters, x, buffers)
    assert_close(channels_first(logits), case.arrays["out/train_logits"], "logits")
    expected = case.arrays["out/eval_logits_after_one_train_step"]
    assert_close(channels_first(evaluated), expected, "logits in evaluation mode")
    assert_close(channels_first(grad_x), case.arrays["grad/x"], "gradient of x")
    norms = {names.to_torch_name(path): np.linalg.norm(np.asarray(grad).ravel()) for path, grad in grads.items()}
    assert_numbers(norms, case.config["grad_norms"], "gradient norm")
    for key, array in case.arrays.items():
        if key.startswith("buffer/"):
            assert_close(moved[key.removeprefix("buffer/")], array, key)
