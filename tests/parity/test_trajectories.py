"""Training trajectories: every logged term of every step, and the final parameters, averages and statistics."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.support.golden_cases import (
    assert_close,
    assert_numbers,
    channels_first,
    channels_last,
    uniform,
    weight,
    weights_for,
)
from tests.support.reference_config import trajectory_config
from voken_common.checkpoints import weight_names as names
from voken_common.config.schedules import build_schedule
from voken_jax.models.functional import Network
from voken_jax.models.layers import Policy
from voken_jax.models.lpips import LPIPS
from voken_jax.optimization.optim import build_optimizer
from voken_jax.parallel.sharding import make_mesh, state_shardings
from voken_jax.quantizers.configured import quantize
from voken_jax.tokenizer.state import build_players, init_state
from voken_jax.tokenizer.step import Perceptual, TokenizerStep

KINDS = ["train_lfq", "train_ibq", "train_video"]
SLOW = ["train_video"]

COMMON = {
    "total_loss": "total_loss",
    "nll_loss": "nll_loss",
    "reconstruct_loss": "reconstruction_loss",
    "perceptual_loss": "perceptual_loss",
    "d_weight": "generator_weight",
    "disc_factor": "discriminator_factor",
    "g_loss": "generator_loss",
    "disc_loss": "discriminator_loss",
    "logits_real": "logits_real",
    "logits_fake": "logits_fake",
    "lecam_loss": "lecam_loss",
    "generator_grad_norm": "generator_grad_norm",
}
LOGS = {
    "train_lfq": COMMON
    | {
        "per_sample_entropy": "per_sample_entropy",
        "codebook_entropy": "codebook_entropy",
        "commit_loss": "commitment_loss",
        "entropy_loss": "entropy_loss",
        "non_saturated_d_loss": "discriminator_raw_loss",
    },
    "train_ibq": COMMON
    | {
        "codebook_quant_loss": "quant_loss",
        "codebook_entropy_loss": "entropy_loss",
        "codebook_sample_entropy_loss": "per_sample_entropy",
        "codebook_avg_entropy_loss": "codebook_entropy",
        "codebook_loss": "codebook_loss",
        "unsacled_g_loss": "generator_raw_loss",
    },
}
LOGS["train_video"] = LOGS["train_lfq"]
SILENT_BEFORE_START = ["d_weight", "g_loss", "unsacled_g_loss", "disc_loss", "logits_real", "logits_fake", "lecam_loss"]
"""What the reference logs as 0 in an IBQ run while its discriminator factor is 0."""


def lpips_rule(key, shape, seed):
    """LPIPS constants and non-negative heads."""
    if key == "scaling_layer.shift":
        return np.asarray([-0.030, -0.088, -0.188]).reshape(shape)
    if key == "scaling_layer.scale":
        return np.asarray([0.458, 0.448, 0.450]).reshape(shape)
    array = weight(key, shape, seed)
    return np.abs(array) * np.sqrt(shape[1]) / shape[1] if key.startswith("lin") else array


def lpips_for(seed, dtype):
    """LPIPS with recipe weights."""
    network = Network(lambda rngs: LPIPS(policy=Policy(jnp.dtype(dtype), jnp.dtype(dtype)), rngs=rngs))
    return Perceptual(network, weights_for(network.parameters | network.buffers, seed, dtype=dtype, rule=lpips_rule))


def build(case, dtype="float64"):
    """The step and the initial state of a trajectory case."""
    config = trajectory_config(case, dtype)
    players = build_players(config)
    optimizer = build_optimizer(config.optimizer, build_schedule(config, 1, config.training.steps))
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    shapes = jax.eval_shape(lambda: init_state(config, players, optimizer))
    # Only the discriminator is really initialised, for its constant buffers; everything else is recipe or zero.
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    constants = players.discriminator.init(jax.random.key(0))[1]
    generator = weights_for(players.autoencoder.parameters, case.seed, dtype=dtype)
    discriminator = weights_for(players.discriminator.parameters, case.seed, names.DISCRIMINATOR_PREFIX, dtype)
    statistics = {n: s for n, s in players.discriminator.buffers.items() if "kernel" not in n}
    buffers = constants | weights_for(statistics, case.seed, names.DISCRIMINATOR_PREFIX, dtype)
    state = jax.tree.map(
        jnp.array,
        state.replace(
            generator=generator,
            discriminator=discriminator,
            buffers=buffers,
            generator_ema=generator,
            discriminator_ema=discriminator,
        ),
    )
    shardings = state_shardings(state, mesh, config)
    perceptual = lpips_for(case.seed, dtype) if config.perceptual.weight else None
    step = TokenizerStep(config, players, optimizer, mesh, shardings, perceptual)
    return step, jax.device_put(state, shardings)


def batch(case, index):
    """Batch `index` of the case, channels last."""
    values = uniform(case.config["shape"], case.seed, f"batch{index}") * 0.5
    return channels_last(np.clip(values, -1, 1))


def norms(generator, discriminator):
    """Norms by torch key."""
    named = {names.to_torch_name(n): a for n, a in generator.items()}
    named |= {names.DISCRIMINATOR_PREFIX + names.to_torch_name(n): a for n, a in discriminator.items()}
    return {key: np.linalg.norm(np.asarray(array).ravel()) for key, array in named.items()}


def logged(case, metrics):
    """Our metrics under the reference's log names."""
    found = {theirs: float(metrics[ours]) for theirs, ours in LOGS[case.kind].items() if ours in metrics}
    if case.kind == "train_ibq":
        if not case.config["init_args"].get("use_entropy_loss", False):
            found.pop("codebook_loss")
        if found["disc_factor"] == 0:
            found |= dict.fromkeys(SILENT_BEFORE_START, 0.0)
    return found


def test_trajectory(case, x64):
    step, state = build(case)
    for index, expected in enumerate(case.config["logs"]):
        state, metrics, _ = step(state, batch(case, index))
        assert_numbers(logged(case, metrics), expected, f"step {index}")
    assert int(state.failure) == 0
    assert_numbers(norms(state.generator, state.discriminator), case.config["final_param_norms"], "parameters")
    assert_numbers(norms(state.generator_ema, state.discriminator_ema), case.config["final_ema_norms"], "averages")
    statistics = {k: v for k, v in state.buffers.items() if "running" in k}
    found = {key: np.linalg.norm(np.asarray(array)) for key, array in statistics.items()}
    assert_numbers(found, case.config["final_buffers"], "statistics")
    model = step.players.autoencoder.bind(state.generator)
    quantized = quantize(step.config.quantizer, model.encode(jnp.asarray(batch(case, 0))), model.codebook)
    reconstruction = channels_first(model.decode(quantized.codes))
    assert_close(reconstruction, case.arrays["out/final_reconstruction"], "final reconstruction")
