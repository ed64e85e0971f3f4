"""Training trajectories of both generators in PyTorch."""

import torch

from tests.parity.test_generator_trajectories import batch_of, trajectory_config
from tests.support.golden_cases import assert_numbers, weight
from voken_common.config.schedules import build_schedule, scheduled_weight_decay
from voken_torch.generator.step import GeneratorStep, create_generator_state

KINDS = ["ar_train_magvit2", "ar_train_ibq"]


def test_trajectory(case):
    config = trajectory_config(case)
    total = config.training.steps
    schedule = build_schedule(config, 1, total)
    state = create_generator_state(config)
    weights = {name: weight(name, value.shape, case.seed) for name, value in state.network.state_dict().items()}
    state.network.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    step = GeneratorStep(config, state, schedule, total)
    settings = config.optimizer
    for number, expected in enumerate(case.config["logs"]):
        batch = batch_of(case, config, number)
        metrics = step(state, {name: torch.from_numpy(array).long() for name, array in batch.items()})
        found = {
            "loss": metrics["loss"],
            "grad_norm": metrics["grad_norm"],
            "lr": settings.learning_rate * schedule(number),
            "weight_decay": scheduled_weight_decay(settings, number, total),
        }
        assert_numbers(found, expected, f"step {number}")
    norms = {name: p.detach().norm() for name, p in state.network.named_parameters()}
    assert_numbers(norms, case.config["final_param_norms"], "final parameter norm")
