"""Training trajectories of both generators: losses, norms, schedules, and the final parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity.test_generators import tokens_of, transformer_config
from tests.support.golden_cases import assert_numbers, weights_for
from voken_common.checkpoints import weight_names as names
from voken_common.config.schedules import build_schedule, scheduled_weight_decay
from voken_common.config.schema.generator import (
    GeneratorConfig,
    GeneratorOptimizerConfig,
    SamplingConfig,
    TokenDataConfig,
)
from voken_common.config.schema.run import MeshConfig, PrecisionConfig, ScheduleConfig, TrainingConfig
from voken_jax.generator.step import GeneratorStep, init_generator_state
from voken_jax.models.functional import Network
from voken_jax.models.generator import build_generator
from voken_jax.models.layers import Policy
from voken_jax.models.stacked import stack_layers, unstack_layers
from voken_jax.optimization.optim import build_generator_optimizer
from voken_jax.parallel.sharding import make_mesh, replicated

KINDS = ["ar_train_magvit2", "ar_train_ibq"]


def trajectory_config(case):
    """Our configuration of a case's run; its labels are never dropped."""
    given = case.config
    model = transformer_config(given["config"]).model_copy(update={"label_dropout": 0.0})
    ones = (1.0,) * len(model.vocabularies)
    return GeneratorConfig(
        name=case.name,
        model=model,
        optimizer=GeneratorOptimizerConfig(
            learning_rate=given["lr"],
            weight_decay=given["weight_decay"],
            weight_decay_end=given["weight_decay_end"],
            gradient_clip=given["clip"] or None,
            schedule=ScheduleConfig(
                kind="linear", warmup_steps=given["warmup_iters"], start_factor=given["wp0"], end_factor=given["wpe"]
            ),
        ),
        precision=PrecisionConfig(param_dtype="float64", compute_dtype="float64"),
        mesh=MeshConfig(),
        data=TokenDataConfig(train="none"),
        training=TrainingConfig(batch_size=given["batch"], steps=given["max_iters"]),
        sampling=SamplingConfig(scale=ones, temperature=ones, top_k=(0,) * len(ones), top_p=ones),
    )


def batch_of(case, config, number):
    """Tokens and labels of one batch."""
    names = ("pre", "post") if len(config.model.vocabularies) == 2 else ("idx",)
    size = config.training.batch_size
    tokens = tokens_of(config.model, names, size, case.seed, suffix=str(number))
    labels = (number * size + np.arange(size)) % config.model.classes
    return {"tokens": tokens, "labels": labels.astype(np.int32)}


def test_trajectory(case, x64):
    config = trajectory_config(case)
    policy = Policy(jnp.float64, jnp.float64)
    network = Network(lambda rngs: build_generator(config.model, policy=policy, rngs=rngs))
    total = config.training.steps
    schedule = build_schedule(config, 1, total)
    optimizer = build_generator_optimizer(config.optimizer, schedule, total)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    state = init_generator_state(config, network, optimizer)
    weights = jax.tree.map(jnp.asarray, weights_for(network.parameters, case.seed))
    state = dataclasses.replace(state, generator=stack_layers(weights))
    step = GeneratorStep(config, network, optimizer, mesh, jax.tree.map(lambda _: replicated(mesh), state))
    for number, expected in enumerate(case.config["logs"]):
        state, metrics = step(state, batch_of(case, config, number))
        found = {
            "loss": metrics["loss"],
            "grad_norm": metrics["grad_norm"],
            "lr": config.optimizer.learning_rate * schedule(number),
            "weight_decay": scheduled_weight_decay(config.optimizer, number, total),
        }
        assert_numbers(found, expected, f"step {number}")
    assert int(state.failure) == 0
    assert int(state.step) == case.config["steps"]
    norms = {names.to_torch_name(name): np.linalg.norm(w) for name, w in unstack_layers(state.generator).items()}
    assert_numbers(norms, case.config["final_param_norms"], "final parameter norm")
