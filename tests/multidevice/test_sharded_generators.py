"""Generators on one device and on eight: the same numbers, and heads and feed-forward layers that are split."""

import jax
import numpy as np
import optax
import pytest

from tests.multidevice.test_step import assert_same
from tests.support.tiny_generator import ADAPTIVE, FACTORIZED, generator_config
from voken_jax.generator.build import build_run
from voken_jax.generator.step import create_generator_state
from voken_jax.generator.validation import GeneratorValidator
from voken_jax.parallel.sharding import batch_sharding, make_mesh

pytestmark = pytest.mark.usefixtures("x64")

KINDS = {"adaptive": ADAPTIVE, "factorized": FACTORIZED}
SPLIT = {"fsdp": 4, "model": 2}


def config_of(path, kind, mesh, **optimizer):
    """All dropout is on, and averages are kept."""
    return generator_config(
        path,
        KINDS[kind] | {"grid": 2},
        precision={"param_dtype": "float64", "compute_dtype": "float64", "remat": kind == "factorized"},
        optimizer={"ema_decay": 0.9, **optimizer},
        training={"batch_size": 16},
        mesh=mesh,
    )


class Run:
    """The parts of a run on some devices."""

    def __init__(self, config, devices):
        self.mesh = make_mesh(config.mesh, jax.devices()[:devices])
        run = build_run(config, mesh=self.mesh)
        self.config, self.network, self.abstract, self.step = config, run.network, run.abstract, run.step
        self.optimizer = run.optimizer

    def initial(self):
        """A state with the same numbers on any devices, none of them special."""
        random = np.random.default_rng(0)

        def value(path, leaf):
            if path[0].name in ("generator", "generator_ema"):
                return 0.3 * random.normal(size=leaf.shape)
            if path[0].name == "rng":
                return np.arange(leaf.size).reshape(leaf.shape).astype(leaf.dtype)
            return np.zeros(leaf.shape, leaf.dtype)

        values = jax.tree_util.tree_map_with_path(value, self.abstract)
        return jax.tree.map(lambda array, leaf: jax.device_put(array, leaf.sharding), values, self.abstract)

    def place(self, batch):
        return jax.device_put(batch, batch_sharding(self.mesh))


def batch_of(config, seed):
    random, size, model = np.random.default_rng(seed), config.training.batch_size, config.model
    tokens = [random.integers(0, codes, (size, model.tokens)) for codes in model.vocabularies]
    labels = random.integers(0, model.classes, size)
    return {"tokens": np.stack(tokens, -1).astype(np.int32), "labels": labels.astype(np.int32)}


def trained(path, kind, devices, accumulate):
    """(final state, metrics of every step, held-out metrics) after two steps."""
    mesh = SPLIT if devices == 8 else {}
    run = Run(config_of(path, kind, mesh, gradient_accumulation=accumulate), devices)
    state, history = run.initial(), []
    for seed in range(2):
        state, metrics = run.step(state, run.place(batch_of(run.config, seed)))
        history.append(jax.device_get(metrics))
    batch = batch_of(run.config, 2) | {"mask": (np.arange(16) < 11).astype(np.float64)}
    held_out = GeneratorValidator(run.config, run.network, run.mesh)(state.generator_ema, [run.place(batch)])
    return jax.device_get(state), history, held_out


@pytest.mark.parametrize(
    ("kind", "accumulate"), [("adaptive", 1), pytest.param("factorized", 2, marks=pytest.mark.slow)]
)
def test_eight_devices_compute_what_one_computes(kind, accumulate, tmp_path):
    expected, history, held_out = trained(tmp_path, kind, 1, accumulate)
    found, parallel, held_out_parallel = trained(tmp_path, kind, 8, accumulate)
    assert_same(parallel, history)
    assert_same(found, expected)
    assert_same(held_out_parallel, held_out)
    assert expected.step == 2
    assert expected.failure == 0
    assert history[0]["loss"] != history[1]["loss"]


def test_heads_feed_forward_and_moments_are_split(tmp_path):
    run = Run(config_of(tmp_path, "adaptive", SPLIT), 8)
    state = create_generator_state(run.config, run.network, run.optimizer, run.mesh)
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == jax.tree.map(lambda leaf: leaf.sharding, run.abstract)
    layers, width, hidden = 2, 16, run.config.model.feed_forward_width
    expected = {
        "attention.wqkv": (layers, width // 4, 3 * width // 2),
        "attention.wo": (layers, width // 2, width // 4),
        "feed_forward.w1": (layers, width // 4, hidden // 2),
        "feed_forward.w2": (layers, hidden // 2, width // 4),
        "ada_lin.1": (layers, width // 8, 6 * width),
    }
    for weights in (state.generator, state.generator_ema, optax.tree.get(state.optimizer, "mu")):
        for name, shape in expected.items():
            assert {s.data.shape for s in weights[f"blocks.*.{name}.kernel"].addressable_shards} == {shape}


def test_the_step_is_no_longer_for_more_layers(tmp_path):
    """Operations of the whole program, the optimizer included, before anything is optimised."""

    def operations(layers):
        config = config_of(tmp_path, "adaptive", {})
        model = config.model.model_copy(update={"layers": layers})
        run = Run(config.model_copy(update={"model": model}), 1)
        batch = batch_of(config, 0)
        return run.step.program.trace(run.abstract, batch).jaxpr.jaxpr.pretty_print().count("\n")

    assert operations(7) == operations(2)
