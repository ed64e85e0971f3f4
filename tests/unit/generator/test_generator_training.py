"""The parts of training a generator: its arithmetic, where its weights live, joined layers, decay, a refused step."""

import dataclasses
import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from tests.support.tiny_generator import ADAPTIVE, FACTORIZED, generator_config
from voken_common.config.schema.run import MeshConfig
from voken_common.training.flops import peak_flops, sample_flops
from voken_common.training.generator_logs import perplexities, shown_labels
from voken_jax.generator.step import GeneratorStep, init_generator_state, token_losses
from voken_jax.models.stacked import bind_stacked, in_state, is_stacked, stack_layers, unstack_layers
from voken_jax.optimization.finite import failed_terms
from voken_jax.optimization.optim import scheduled_decay
from voken_jax.parallel.sharding import generator_spec, make_mesh, replicated
from voken_jax.tokenizer.state import build_generator_network


def products(jaxpr, times=1):
    """Multiply-adds of every matrix product in a program, loops by their length."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += times * equation.outvars[0].aval.size * np.prod([left[axis] for axis in contracted])
        length = equation.params["length"] if equation.primitive.name == "scan" else 1
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            total += products(inner, times * length)
    return total


@pytest.mark.parametrize("kind", [ADAPTIVE, FACTORIZED])
def test_flops_are_those_of_the_programs_products(tmp_path, kind, x64):
    """Counted in the traced gradient, where attention multiplies all pairs instead of the visible ones."""
    config = generator_config(tmp_path, kind, precision={"param_dtype": "float64", "compute_dtype": "float64"})
    model, network = config.model, build_generator_network(config)
    weights = jax.eval_shape(stack_layers, network.parameters)
    tokens = jax.ShapeDtypeStruct((1, model.tokens, len(model.vocabularies)), jnp.int32)

    def loss(weights, tokens):
        logits = bind_stacked(network, weights)(tokens, jnp.zeros((1,), jnp.int32))
        return token_losses(logits, tokens)[0]

    traced = jax.make_jaxpr(jax.grad(loss))(weights, tokens)
    hidden = model.layers * model.width * model.tokens * (2 * model.tokens - (model.tokens + 1))
    if kind is FACTORIZED:
        hidden += model.tokens * model.factorized_layers * model.width * 2 * (4 - 3)
    assert 2 * products(traced.jaxpr) == sample_flops(model) + 3 * 2 * hidden


def test_peaks_are_known_by_the_longest_name_that_fits():
    assert peak_flops("NVIDIA H100 80GB HBM3", "bfloat16") == 989e12
    assert peak_flops("NVIDIA H100 PCIe", "bfloat16") == 756e12
    assert peak_flops("NVIDIA A100-SXM4-80GB", "bfloat16") == 312e12
    assert peak_flops("TPU v5 lite", "bfloat16") == 197e12
    assert peak_flops("NVIDIA L40", "bfloat16") is None
    assert peak_flops("NVIDIA H100 80GB HBM3", "float32") is None
    assert peak_flops("cpu", "bfloat16") is None


def test_perplexity_is_of_each_sub_token():
    assert perplexities({"loss": 2.0, "accuracy": 0.5}) == {"perplexity": pytest.approx(np.exp(2.0))}
    found = perplexities({"loss": 3.0, "loss_0": 1.0, "loss_1": 2.0})
    assert found == {"perplexity_0": pytest.approx(np.e), "perplexity_1": pytest.approx(np.exp(2.0))}
    assert np.isfinite(perplexities({"loss": 1e9})["perplexity"])


def test_shown_classes_are_spread():
    assert shown_labels(4, 1000).tolist() == [0, 250, 500, 750]
    assert shown_labels(5, 3).tolist() == [0, 1, 2, 0, 1]
    assert shown_labels(0, 3).shape == (0,)


def test_token_losses_of_two_sub_tokens():
    logits = (
        jnp.log(jnp.array([[[0.25, 0.75], [0.5, 0.5]]])),
        jnp.log(jnp.array([[[0.2, 0.3, 0.5], [0.8, 0.1, 0.1]]])),
    )
    total, metrics = token_losses(logits, jnp.array([[[1, 0], [0, 0]]]))
    first, second = -np.log([0.75, 0.5]).mean(), -np.log([0.2, 0.8]).mean()
    np.testing.assert_allclose(
        [metrics["loss_0"], metrics["loss_1"], total], [first, second, first + second], rtol=1e-6
    )
    assert (float(metrics["accuracy_0"]), float(metrics["accuracy_1"])) == (1.0, 0.5)
    assert metrics.keys() == {"loss", "loss_0", "loss_1", "accuracy_0", "accuracy_1"}


@pytest.mark.parametrize("kind", [ADAPTIVE, FACTORIZED])
def test_joined_layers_compute_the_same_and_come_apart_again(tmp_path, kind):
    config = generator_config(tmp_path, kind | {"layers": 11})
    network = build_generator_network(config)
    random = np.random.default_rng(0)
    weights = {n: jnp.asarray(0.1 * random.normal(size=s.shape), s.dtype) for n, s in network.parameters.items()}
    stacked = stack_layers(weights)
    blocks = "blocks" if kind is ADAPTIVE else "spatial_blocks"
    name = f"{blocks}.*.feed_forward.w2.kernel"
    assert is_stacked(name)
    assert not is_stacked("head.kernel")
    np.testing.assert_array_equal(stacked[name][10], weights[f"{blocks}.10.feed_forward.w2.kernel"])
    back = unstack_layers(stacked)
    assert back.keys() == weights.keys()
    jax.tree.map(np.testing.assert_array_equal, back, weights)
    tokens = jnp.asarray(random.integers(0, 16, (2, 64, len(config.model.vocabularies))))
    expected = network.bind(weights)(tokens, jnp.array([0, 2]), jax.random.key(1))
    found = bind_stacked(network, stacked)(tokens, jnp.array([0, 2]), jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_joining_reaches_moments_and_leaves_the_rest():
    weights = {"blocks.0.w": jnp.ones(2), "blocks.1.w": jnp.zeros(2), "head.kernel": jnp.ones((2, 2))}
    state = (jnp.zeros(()), optax.scale_by_adam().init(weights), {})
    joined = in_state(stack_layers, state)
    assert joined[1].mu["blocks.*.w"].shape == (2, 2)
    assert joined[1].count.shape == ()
    assert joined[2] == {}
    assert jax.tree.structure(in_state(unstack_layers, joined)) == jax.tree.structure(state)


@pytest.mark.parametrize("spared", [False, True])
def test_decay_spares_tensors_of_one_dimension_also_when_layers_are_joined(spared):
    weights = {"blocks.*.norm.scale": jnp.ones((3, 4)), "blocks.*.wo.kernel": jnp.ones((3, 4, 4)), "norm": jnp.ones(4)}
    zeros = jax.tree.map(jnp.zeros_like, weights)
    transform = scheduled_decay(lambda n: jnp.asarray(0.5), only_matrices=spared)
    updates, state = transform.update(zeros, transform.init(weights), weights)
    assert int(state.updates) == 1
    assert {name: float(update.max()) for name, update in updates.items()} == {
        "blocks.*.norm.scale": 0.0 if spared else 0.5,
        "blocks.*.wo.kernel": 0.5,
        "norm": 0.0 if spared else 0.5,
    }


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("blocks.0.attention.wqkv.kernel", (16, 48), P("fsdp", "model")),
        ("blocks.0.attention.wo.kernel", (16, 16), P("model", "fsdp")),
        ("blocks.*.feed_forward.w1.kernel", (5, 16, 48), P(None, "fsdp", "model")),
        ("blocks.*.feed_forward.w2.kernel", (5, 48, 16), P(None, "model", "fsdp")),
        ("blocks.*.ada_lin.1.kernel", (5, 16, 96), P(None, ("fsdp", "model"), None)),
        ("blocks.*.ada_lin.1.bias", (5, 96), P(None)),
        ("head.1.kernel", (16, 30), P("fsdp", "model")),
        ("head.kernel", (16, 31), P("fsdp", None)),
        ("tok_emb.embedding", (256, 16), P(None, "fsdp")),
        ("norm.scale", (16,), P()),
    ],
)
def test_where_weights_live(name, shape, expected):
    mesh = make_mesh(MeshConfig(fsdp=4, model=2))
    assert generator_spec(name, shape, mesh) == expected


def test_a_step_that_is_not_finite_changes_nothing_until_the_failure_is_cleared(tmp_path):
    config = generator_config(tmp_path, ADAPTIVE | {"grid": 2, "layers": 1})
    network, optimizer = build_generator_network(config), optax.sgd(0.1)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    state = jax.jit(functools.partial(init_generator_state, config, network, optimizer))()
    everywhere = jax.tree.map(lambda _: replicated(mesh), state)
    step = GeneratorStep(config, network, optimizer, mesh, everywhere)
    batch = {"tokens": np.zeros((8, 4, 1), np.int32), "labels": np.zeros(8, np.int32)}

    def changed(state, **values):
        """Some weights changed, placed as the step wants them, so that it is compiled once."""
        return jax.device_put(dataclasses.replace(state, **values), everywhere)

    head = {"head.kernel": np.full((16, 256), np.nan, np.float32)}
    spoiled = changed(state, generator=state.generator | head)
    before = jax.device_get(spoiled)
    after, metrics = step(spoiled, batch)
    assert {"loss", "grad_norm"} <= set(failed_terms(int(after.failure), metrics))
    cured = changed(after, generator=after.generator | {"head.kernel": np.zeros((16, 256), np.float32)})
    later, metrics = step(cured, batch)
    assert np.isfinite(metrics["loss"])
    assert int(later.step) == 0
    same = {name: w for name, w in jax.device_get(later.generator).items() if name != "head.kernel"}
    jax.tree.map(np.testing.assert_array_equal, same, {name: before.generator[name] for name in same})
    moved, _ = step(changed(later, failure=np.zeros((), np.int32)), batch)
    assert int(moved.step) == 1
    assert step.program._cache_size() == 1
