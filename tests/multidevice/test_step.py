"""The step on one device and on eight: the same numbers, and what happens per device, in parts, late, or not at all."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from voken_common.config.loading import validate
from voken_jax.optimization.finite import failed_terms
from voken_jax.parallel.sharding import batch_sharding, make_mesh
from voken_jax.tokenizer.build import build_run
from voken_jax.tokenizer.state import create_state

pytestmark = pytest.mark.usefixtures("x64")

SIZE = 8
CLIPS = {"kind": "video_folder", "path": "videos", "frames": 3}
NONLINEAR = {"generator_grad_norm", "discriminator_grad_norm"}
"""Metrics that are not means over images."""


def config_of(kind, batch_size=8, **sections):
    """The tiniest run of a family; both adversarial terms start at step 1."""
    vqgan, video = kind == "ibq", kind == "video"
    model = {
        "network": "vqgan" if vqgan else "magvit2_video" if video else "magvit2",
        "resolution": SIZE,
        "channels": 32,
        "channel_multipliers": [1],
        "residual_blocks": 1,
        "z_channels": 6,
    }
    quantizer = {"codebook_size": 24 if vqgan else 64, "code_dim": 6, "kind": "lfq" if video else kind}
    mapping = {
        "name": "tiny",
        "model": model,
        "quantizer": quantizer | sections.pop("quantizer", {}),
        "discriminator": {"kind": "patchgan_3d" if video else "patchgan", "channels": 8, "layers": 1},
        "adversarial": {"start_step": 1, "lecam_decay": 0.9},
        "perceptual": {"weights": "none"},
        "optimizer": {"learning_rate": 1e-3},
        "precision": {"param_dtype": "float64", "compute_dtype": "float64"},
        "data": {"train": CLIPS if video else {"kind": "skimage", "region": "all"}, "image_size": SIZE},
        "training": {"batch_size": batch_size, "steps": 10},
    }
    return validate(mapping | sections, origin="tiny")


class Run:
    """The parts of a run on the first devices, its program compiled once and in a hurry."""

    def __init__(self, config, devices):
        self.mesh = make_mesh(config.mesh, jax.devices()[:devices])
        run = build_run(config, mesh=self.mesh)
        self.config, self.players, self.optimizer, self.abstract = config, run.players, run.optimizer, run.abstract
        frames = (CLIPS["frames"],) if config.model.is_video else ()
        shape = (config.training.batch_size, *frames, SIZE, SIZE, 3)
        images = jax.ShapeDtypeStruct(shape, jnp.float64, sharding=batch_sharding(self.mesh))
        # Compiling takes nearly all of this file's time; unoptimised kernels take half of it.
        self.program = run.step.lower(self.abstract, images).compile({"xla_backend_optimization_level": 0})

    def step(self, state, images):
        """(state, metrics)."""
        return self.program(state, jax.device_put(images, batch_sharding(self.mesh)), {})[:2]


@functools.cache
def run_of(config, devices):
    """One Run for all tests that need it."""
    return Run(config, devices)


def initial(config, devices=1, step=0):
    """A state with the same numbers on any devices, none of them special."""
    abstract = run_of(config, devices).abstract
    random = np.random.default_rng(0)

    def value(path, leaf):
        name = str(path[-1].key) if isinstance(path[-1], jax.tree_util.DictKey) else path[-1].name
        if path[0].name in ("generator_optimizer", "discriminator_optimizer", "lecam", "failure"):
            return np.zeros(leaf.shape, leaf.dtype)
        if name == "rng":
            return np.arange(np.prod(leaf.shape)).reshape(leaf.shape).astype(leaf.dtype)
        if name.endswith(("scale", "running_var")):
            return 1.0 + 0.1 * random.uniform(size=leaf.shape)
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            return np.full(leaf.shape, step if name == "step" else 0, leaf.dtype)
        return random.normal(size=leaf.shape) / np.sqrt(max(np.prod(leaf.shape[:-1]), 1))

    values = jax.tree_util.tree_map_with_path(value, abstract)
    return jax.tree.map(lambda array, leaf: jax.device_put(array, leaf.sharding), values, abstract)


def images_of(count, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (count, SIZE, SIZE, 3))


def clips_of(count, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (count, CLIPS["frames"], SIZE, SIZE, 3))


def run(config, devices, batches, state=None):
    """(final state, metrics of every step), as NumPy."""
    step = run_of(config, devices).step
    state, history = initial(config, devices) if state is None else state, []
    for images in batches:
        state, metrics = step(state, images)
        history.append(jax.device_get(metrics))
    return jax.device_get(state), history


def assert_same(found, expected, tolerance=1e-9):
    """Every leaf agrees relative to its largest magnitude."""

    def check(path, a, b):
        scale = float(np.abs(b).max(initial=0.0)) + 1e-3
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(check, found, expected)


def first_moments(state):
    """Adam's first moments of both players: after one step from zero they are proportional to the gradients."""
    return {
        player: optax.tree.get(getattr(state, f"{player}_optimizer"), "mu") for player in ("generator", "discriminator")
    }


BATCHES = [images_of(8, seed) for seed in range(2)]


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("video", "video with fsdp")]


@pytest.mark.parametrize("kind", ["lfq", "ibq", *SLOW])
def test_eight_devices_compute_what_one_computes(kind):
    config = config_of(kind.split()[0])
    batches = [clips_of(8, seed) for seed in range(2)] if config.model.is_video else BATCHES
    expected, history = run(config, 1, batches)
    eight = config_of("video", mesh={"fsdp": 2}) if kind.endswith("fsdp") else config
    found, parallel = run(eight, 8, batches)
    assert_same(parallel, history)
    assert_same(found, expected)
    assert expected.step == 2
    assert expected.failure == 0
    assert history[1]["generator_loss"] != 0


def test_sharded_weights_are_born_sharded_and_compute_what_one_device_computes():
    config, sharded = config_of("lfq"), config_of("lfq", mesh={"fsdp": 2})
    born, alone = run_of(sharded, 8), run_of(config, 1)
    assert dict(born.mesh.shape) == {"data": 4, "fsdp": 2, "model": 1}
    state = create_state(sharded, born.players, born.optimizer, born.mesh)
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == jax.tree.map(lambda leaf: leaf.sharding, born.abstract)
    kernel = state.generator["encoder.conv_out.kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 2
    moments = first_moments(state)["generator"]["encoder.conv_out.kernel"]
    assert moments.addressable_shards[0].data.size == kernel.size // 2

    single = create_state(config, alone.players, alone.optimizer, alone.mesh)
    assert_same(jax.device_get(state), jax.device_get(single), tolerance=0.0)
    expected, history = run(config, 1, BATCHES, single)
    found, parallel = run(sharded, 8, BATCHES, state)
    assert_same(parallel, history)
    assert_same(found, expected)


def test_per_device_statistics_are_means_of_independent_results():
    """Two devices against two runs on one device, each on its half of the batch and from the same state."""
    config, halves = config_of("lfq", 16, statistics_scope="per_device"), config_of("lfq")
    both = np.concatenate([images_of(8, 3), 0.2 * images_of(8, 4) + 0.5])
    before = jax.device_get(initial(config, 2, step=1))
    found, (metrics,) = run(config, 2, [both], initial(config, 2, step=1))
    shards = [run(halves, 1, [half], initial(halves, 1, step=1)) for half in np.split(both, 2)]
    mean = functools.partial(jax.tree.map, lambda *leaves: np.mean(leaves, axis=0))

    logs = mean(*(history[0] for _, history in shards))
    assert_same({k: metrics[k] for k in logs if k not in NONLINEAR}, {k: logs[k] for k in logs if k not in NONLINEAR})
    moments = mean(*(first_moments(state) for state, _ in shards))
    assert_same(first_moments(found), moments)
    assert_same(found.buffers, mean(*(state.buffers for state, _ in shards)))
    assert_same(
        found.lecam, jax.tree.map(lambda *leaves: np.concatenate(leaves), *(state.lecam for state, _ in shards))
    )
    assert abs(found.lecam.real[0] - found.lecam.real[1]) > 1e-4

    optimizer = run_of(config, 2).optimizer
    for player in ("generator", "discriminator"):
        weights = getattr(before, player)
        grads = jax.tree.map(lambda m: m / (1 - config.optimizer.betas[0]), moments[player])
        updates, _ = optimizer.update(grads, getattr(before, f"{player}_optimizer"), weights)
        assert_same(jax.device_get(getattr(found, player)), jax.device_get(optax.apply_updates(weights, updates)))
        np.testing.assert_allclose(metrics[f"{player}_grad_norm"], optax.tree.norm(grads))

    pooled = run(halves, 1, [both[::2]], initial(halves, 1, step=1))[1][0]
    assert abs(pooled["codebook_entropy"] - metrics["codebook_entropy"]) > 1e-3


LINEAR = {
    "discriminator": {"kind": "blur", "hidden_channels": 32, "stages": 1},
    "adversarial": {"lecam_weight": 0.0},
}
WITHOUT_BATCH_ENTROPY = {"lfq": {"batch_entropy_weight": 0.0}, "ibq": {"use_entropy": False}}
"""No term of the loss sees more than one image: group norm, no batch entropy, no LeCAM."""

ORDER_DEPENDENT = {"lecam_loss", "codebook_entropy", "entropy_loss"}


@pytest.mark.parametrize("kind", [pytest.param("lfq", marks=pytest.mark.slow), "ibq"])
def test_accumulated_micro_batches_are_one_batch(kind):
    """Where every term is a mean over images, and its weight in the loss is not zero, two halves make the whole.

    LeCAM's averages move once per micro-batch, and the batch entropy is a micro-batch's: both differ, with weight 0.
    """
    linear = LINEAR | {"quantizer": WITHOUT_BATCH_ENTROPY[kind]}
    whole, halves = (
        config_of(kind, **linear),
        config_of(kind, **linear, optimizer={"learning_rate": 1e-3, "gradient_accumulation": 2}),
    )
    expected, (logs,) = run(whole, 1, BATCHES[:1])
    found, (accumulated,) = run(halves, 1, BATCHES[:1])
    assert set(logs) == set(accumulated)
    kept = set(logs) - ORDER_DEPENDENT
    assert_same({name: accumulated[name] for name in kept}, {name: logs[name] for name in kept})
    assert_same(found.replace(lecam=()), expected.replace(lecam=()))
    assert found.step == 1


def test_a_step_that_is_not_finite_changes_nothing_and_names_its_terms():
    config = config_of("lfq")
    before = jax.device_get(initial(config))
    bad = images_of(8)
    bad[3, 5, 7, 1] = np.nan
    after, (metrics,) = run(config, 1, [bad])
    terms = failed_terms(int(after.failure), metrics)
    assert {"total_loss", "reconstruction_loss", "nll_loss", "generator_grad_norm"} <= set(terms)
    assert not {"discriminator_factor", "generator_weight"} & set(terms)
    assert_same(after.replace(failure=before.failure), before, tolerance=0.0)

    failed = jax.device_put(after, jax.tree.map(lambda leaf: leaf.sharding, run_of(config, 1).abstract))
    later, (metrics,) = run(config, 1, [images_of(8)], failed)
    assert np.isfinite(metrics["total_loss"])
    assert_same(later, after, tolerance=0.0)


def test_failure_on_one_device_stops_all():
    config = config_of("lfq", 16, statistics_scope="per_device")
    before = jax.device_get(initial(config, 2))
    bad = images_of(16)
    bad[12] = np.inf
    after, (metrics,) = run(config, 2, [bad])
    assert "reconstruction_loss" in failed_terms(int(after.failure), metrics)
    assert_same(after.replace(failure=before.failure), before, tolerance=0.0)


@pytest.mark.parametrize("kind", ["lfq", "ibq"])
def test_adversarial_terms_start_late(kind):
    config = config_of(kind)
    before = jax.device_get(initial(config))
    state, history = run(config, 1, BATCHES[:1])
    assert [history[0][name] for name in ("discriminator_factor", "generator_loss", "discriminator_loss")] == [0, 0, 0]
    assert_same(state.discriminator, before.discriminator, tolerance=0.0)
    assert optax.tree.get(state.discriminator_optimizer, "count", filtering=_is_adam) == 1
    assert not np.array_equal(state.buffers["main.3.running_mean"], before.buffers["main.3.running_mean"])
    moved = bool(state.lecam.real[0] != 0)
    assert moved == (kind == "lfq"), "LFQ moves the LeCAM averages always, IBQ once its discriminator takes part"

    state, history = run(config, 1, BATCHES)
    assert history[1]["discriminator_factor"] == 1
    assert history[1]["discriminator_loss"] != 0
    assert history[1]["generator_loss"] != 0
    assert state.lecam.real[0] != 0
    assert not np.array_equal(state.discriminator["main.0.kernel"], before.discriminator["main.0.kernel"])


def _is_adam(path, _):
    return "ScaleByAdam" in str(getattr(path[-1], "tuple_name", path[-1]))
