"""PyTorch training trajectories: every logged term of every step, final parameters, averages and statistics."""

import numpy as np
import torch

from tests.parity.test_torch_networks import fill, lpips_rule
from tests.parity.test_trajectories import logged
from tests.support.golden_cases import assert_close, assert_numbers, uniform, weight
from tests.support.reference_config import trajectory_config
from voken_common.checkpoints import weight_names as names
from voken_common.config.schedules import build_schedule
from voken_torch.models.lpips import LPIPS
from voken_torch.quantizers.configured import quantize
from voken_torch.tokenizer.state import create_state
from voken_torch.tokenizer.step import TokenizerStep

KINDS = ["train_lfq", "train_ibq", "train_video"]


def build(case, precision="float64"):
    """The step and the initial state of a trajectory case."""
    config = trajectory_config(case, precision)
    state = create_state(config)
    values = state.to_dict()
    for group, prefix in (("generator", ""), ("discriminator", names.DISCRIMINATOR_PREFIX), ("buffers", "")):
        prefix = names.DISCRIMINATOR_PREFIX if group == "buffers" else prefix
        values[group] = {
            key: value
            if key.endswith(".1.kernel")
            else torch.as_tensor(weight(prefix + key, tuple(value.shape), case.seed))
            for key, value in values[group].items()
        }
    values |= {"generator_ema": values["generator"], "discriminator_ema": values["discriminator"]}
    state.load_dict(values)
    perceptual = fill(LPIPS(), case.seed, precision, rule=lpips_rule)
    schedule = build_schedule(config, 1, config.training.steps)
    return TokenizerStep(config, state, schedule, perceptual=perceptual), state


def batch(case, index):
    """Batch `index` of the case, channels first."""
    values = uniform(case.config["shape"], case.seed, f"batch{index}") * 0.5
    return torch.as_tensor(np.clip(values, -1, 1))


def norms(generator, discriminator):
    """Norms by torch key."""
    named = generator | {names.DISCRIMINATOR_PREFIX + key: value for key, value in discriminator.items()}
    return {key: float(torch.linalg.vector_norm(value)) for key, value in named.items()}


def test_trajectory(case):
    step, state = build(case)
    for index, expected in enumerate(case.config["logs"]):
        metrics = step(state, batch(case, index))
        assert_numbers(logged(case, metrics), expected, f"step {index}")
    assert state.step == len(case.config["logs"])
    assert_numbers(norms(state.generator, state.discriminator), case.config["final_param_norms"], "parameters")
    assert_numbers(norms(state.generator_ema, state.discriminator_ema), case.config["final_ema_norms"], "averages")
    statistics = {key: float(value.norm()) for key, value in state.buffers.items() if "running" in key}
    assert_numbers(statistics, case.config["final_buffers"], "statistics")
    model = state.players.autoencoder
    with torch.no_grad():
        quantized = quantize(step.config.quantizer, model.encode(batch(case, 0)), model.codebook)
        reconstruction = model.decode(quantized.codes)
    assert_close(reconstruction.numpy(), case.arrays["out/final_reconstruction"], "final reconstruction")
