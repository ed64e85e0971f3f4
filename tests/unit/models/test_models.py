"""Networks: any size, number formats, recomputation, dropout, initialisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voken_common.config.schema.adversarial import BlurConfig, PatchGANConfig
from voken_common.config.schema.model import ModelConfig
from voken_common.config.schema.quantizer import IBQConfig, LFQConfig, VQConfig
from voken_jax.models.autoencoder import Autoencoder
from voken_jax.models.discriminator import build_discriminator
from voken_jax.models.functional import Network
from voken_jax.models.layers import Policy, depth_to_space, group_normalize, upsample_nearest
from voken_jax.models.lpips import LPIPS
from voken_jax.quantizers.configured import quantize

LFQ = LFQConfig(codebook_size=64, code_dim=6)
IBQ = IBQConfig(codebook_size=24, code_dim=6)
QUANTIZERS = {"lfq": LFQ, "ibq": IBQ}
FLOAT32, BFLOAT16 = Policy(), Policy(compute_dtype=jnp.bfloat16)


def model_config(kind, dropout=0.0, multipliers=(1, 2)):
    return ModelConfig(
        network="magvit2" if kind == "lfq" else "vqgan",
        resolution=16,
        channels=32,
        channel_multipliers=multipliers,
        residual_blocks=1,
        z_channels=6,
        attention_resolutions=() if kind == "lfq" else (8,),
        dropout=dropout,
    )


def autoencoder(kind, policy=FLOAT32, **changes):
    config = model_config(kind, **changes)
    return Network(lambda rngs: Autoencoder(config, QUANTIZERS[kind], policy=policy, rngs=rngs))


def discriminator(config, policy=FLOAT32):
    return Network(lambda rngs: build_discriminator(config, 3, policy=policy, rngs=rngs))


def deterministic(network, seed=0):
    """Weights without the cost of compiling an initialiser."""
    random = np.random.default_rng(seed)
    return {
        name: jnp.asarray(random.normal(size=leaf.shape) / np.sqrt(max(np.prod(leaf.shape[:-1]), 1)), leaf.dtype)
        for name, leaf in network.parameters.items()
    }


def images(*shape):
    return jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (*shape, 3)), jnp.float32)


@pytest.fixture(scope="module")
def three_levels():
    return {kind: autoencoder(kind, multipliers=(1, 1, 1)) for kind in QUANTIZERS}


@settings(max_examples=12)
@given(kind=st.sampled_from(["lfq", "ibq"]), height=st.integers(1, 20), width=st.integers(1, 20))
def test_any_size_divisible_by_the_factor(three_levels, kind, height, width):
    network = three_levels[kind]

    def run(parameters, x):
        model = network.bind(parameters)
        latents = model.encode(x)
        return latents, model.decode(latents)

    x = jax.ShapeDtypeStruct((1, 4 * height, 4 * width, 3), jnp.float32)
    latents, y = jax.eval_shape(run, network.parameters, x)
    assert latents.shape == (1, height, width, 6)
    assert y.shape == x.shape


def test_resampling_layouts():
    x = jnp.arange(2 * 3 * 8).reshape(1, 2, 3, 8)
    y = depth_to_space(x)
    assert y.shape == (1, 4, 6, 2)
    assert y[0, 2 * 1 + 1, 2 * 2 + 0, 1] == x[0, 1, 2, (1 * 2 + 0) * 2 + 1]
    assert (upsample_nearest(x)[0, 3, 4] == x[0, 1, 2]).all()


def low_precision(function, *arguments):
    """Primitives of a traced function that take bfloat16."""
    names = set()

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            inputs = [v.aval.dtype for v in equation.invars if hasattr(v.aval, "dtype")]
            if jnp.bfloat16 in inputs:
                names.add(equation.primitive.name)
            for value in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")):
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    visit(inner)

    visit(jax.make_jaxpr(function)(*arguments).jaxpr)
    return names


SENSITIVE = {"rsqrt", "sqrt", "exp", "log", "log1p", "reduce_sum", "reduce_max", "argmax", "div"}
"""What norms, softmax, entropies and losses consist of."""


@pytest.mark.parametrize("kind", ["lfq", "ibq"])
def test_bfloat16_keeps_norms_and_quantizer_in_float32(kind):
    network = autoencoder(kind, BFLOAT16)

    def run(parameters, x):
        model = network.bind(parameters)
        latents = model.encode(x)
        quantized = quantize(QUANTIZERS[kind], latents, model.codebook)
        return latents, quantized, model.decode(quantized.codes)

    x = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)
    found = low_precision(run, network.parameters, x)
    assert "conv_general_dilated" in found
    assert not found & SENSITIVE
    latents, quantized, y = jax.eval_shape(run, network.parameters, x)
    assert latents.dtype == jnp.bfloat16
    assert y.dtype == quantized.codes.dtype == jnp.float32
    assert {term.dtype for term in quantized.terms.values()} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in network.parameters.values()} == {jnp.dtype("float32")}


@pytest.mark.parametrize("config", [PatchGANConfig(channels=8), BlurConfig(hidden_channels=32, stages=1)])
def test_bfloat16_discriminators_give_float32_logits(config):
    network = discriminator(config, BFLOAT16)

    def run(parameters, buffers, x):
        return network.bind(parameters, buffers)(x.astype(jnp.bfloat16), train=True)

    arguments = network.parameters, network.buffers, jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    found = low_precision(run, *arguments)
    assert "conv_general_dilated" in found
    assert not found & SENSITIVE
    assert jax.eval_shape(run, *arguments).dtype == jnp.float32


def test_bfloat16_lpips_measures_in_float32():
    network = Network(lambda rngs: LPIPS(policy=BFLOAT16, rngs=rngs))

    def run(weights, x, y):
        return network.bind(weights)(x, y)

    image = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    arguments = network.parameters | network.buffers, image, image
    found = low_precision(run, *arguments)
    assert "conv_general_dilated" in found
    assert not found & SENSITIVE
    assert jax.eval_shape(run, *arguments).dtype == jnp.float32
    feature = jax.ShapeDtypeStruct((2, 8, 8, 64), jnp.float32)
    head = jax.eval_shape(lambda weights, x: network.bind(weights).lin0(x), arguments[0], feature)
    assert head.dtype == jnp.float32


def test_statistics_of_half_precision_features_are_those_of_float32():
    x = (images(2, 8, 8).repeat(32, axis=-1)[..., :32] * 3 + 100).astype(jnp.bfloat16)
    found = group_normalize(x, 8, 1e-6)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, group_normalize(x.astype(jnp.float32), 8, 1e-6))


@pytest.mark.parametrize("kind", ["lfq", pytest.param("ibq", marks=pytest.mark.slow)])
def test_remat_changes_no_value_and_no_gradient(kind, x64):
    # In float64: the gradient of an attention's key bias is zero, and float32 would compare rounding with rounding.
    x = images(1, 16, 16).astype(jnp.float64)

    def objective_of(remat):
        network = autoencoder(kind, Policy(jnp.dtype(jnp.float64), jnp.dtype(jnp.float64), remat))

        def objective(parameters):
            model = network.bind(parameters)
            return jnp.square(model.decode(model.encode(x)) - x).mean()

        return network, objective

    (network, plain), (_, recomputed) = objective_of(False), objective_of(True)
    parameters = deterministic(network)
    program = str(jax.make_jaxpr(recomputed)(parameters))
    assert "remat" in program or "checkpoint" in program
    value, grads = jax.jit(jax.value_and_grad(plain))(parameters)
    value_again, grads_again = jax.jit(jax.value_and_grad(recomputed))(parameters)
    np.testing.assert_allclose(value, value_again, rtol=1e-12)
    for name, grad in grads.items():
        assert grad.dtype == jnp.float64
        scale = float(jnp.abs(grad).max()) + 1e-6
        np.testing.assert_allclose(grad, grads_again[name], atol=1e-10 * scale, err_msg=name)


def test_dropout_only_with_a_key():
    plain, stochastic = autoencoder("ibq"), autoencoder("ibq", dropout=0.5)
    parameters, x = deterministic(plain), images(1, 16, 16)
    encode = jax.jit(lambda key: stochastic.bind(parameters).encode(x, key))
    latents = jax.jit(lambda: plain.bind(parameters).encode(x))()
    np.testing.assert_array_equal(encode(None), latents)
    first, again, other = encode(jax.random.key(0)), encode(jax.random.key(0)), encode(jax.random.key(1))
    np.testing.assert_array_equal(first, again)
    assert jnp.abs(first - latents).max() > 1e-3
    assert jnp.abs(first - other).max() > 1e-3


def test_initialisation():
    network = autoencoder("ibq")
    init = jax.jit(network.init)
    parameters, buffers = init(jax.random.key(0))
    assert buffers == {}
    kernel = parameters["encoder.down.0.block.0.conv1.kernel"]
    bound = 1 / np.sqrt(9 * 32)
    assert 0.95 * bound < jnp.abs(kernel).max() <= bound
    assert 0 < jnp.abs(parameters["encoder.down.0.block.0.conv1.bias"]).max() <= bound
    assert (parameters["encoder.norm_out.scale"] == 1).all()
    assert not np.array_equal(kernel, parameters["encoder.down.0.block.0.conv2.kernel"])
    codes = parameters["quantize.embedding.embedding"]
    assert codes.shape == (24, 6)
    assert 0.7 < codes.std() < 1.3
    other, _ = init(jax.random.key(1))
    assert not np.array_equal(kernel, other["encoder.down.0.block.0.conv1.kernel"])


def test_initialisation_of_the_patch_discriminator_and_of_vq():
    network = discriminator(PatchGANConfig(channels=16))
    parameters, buffers = jax.jit(network.init)(jax.random.key(0))
    assert 0.019 < parameters["main.8.kernel"].std() < 0.021
    assert 0.005 < parameters["main.9.scale"].std() < 0.04
    assert (parameters["main.9.bias"] == 0).all()
    assert (buffers["main.9.running_var"] == 1).all()
    config = VQConfig(codebook_size=50, code_dim=6)
    network = Network(lambda rngs: Autoencoder(model_config("ibq"), config, policy=FLOAT32, rngs=rngs))
    codes = jax.jit(lambda key: network.init(key)[0]["quantize.embedding.embedding"])(jax.random.key(0))
    assert 0.9 / 50 < jnp.abs(codes).max() <= 1 / 50
