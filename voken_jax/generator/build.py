"""The one place that builds a generator's run: network, optimizer, abstract state, its shardings, and the step."""

from __future__ import annotations

from typing import NamedTuple

import optax
from jax.sharding import Mesh

from voken_common.config.schedules import Schedule, build_schedule, total_steps
from voken_common.config.schema.generator import GeneratorConfig
from voken_jax.generator.step import (
    GeneratorState,
    GeneratorStep,
    abstract_generator_state,
    create_generator_state,
)
from voken_jax.models.functional import Network
from voken_jax.optimization.optim import build_generator_optimizer
from voken_jax.parallel.sharding import check_batch, make_mesh, shardings_of
from voken_jax.tokenizer.state import build_generator_network


class GeneratorRun(NamedTuple):
    """A run before its first step; nothing is allocated.

    Attributes:
        config: the run.
        mesh: axes (data, fsdp, model).
        total_steps: its length.
        schedule: learning-rate factor by step.
        network: the transformer.
        optimizer: AdamW with both schedules.
        abstract: shapes, dtypes and shardings of the running state (layers joined), as ShapeDtypeStructs.
        step: the compiled step.
    """

    config: GeneratorConfig
    mesh: Mesh
    total_steps: int
    schedule: Schedule
    network: Network
    optimizer: optax.GradientTransformation
    abstract: GeneratorState
    step: GeneratorStep

    def create_state(self) -> GeneratorState:
        """Create a fresh state, born sharded."""
        return create_generator_state(self.config, self.network, self.optimizer, self.mesh)


def build_run(config: GeneratorConfig, per_epoch: int = 1, mesh: Mesh | None = None) -> GeneratorRun:
    """Build a generator's run for training, a dry run, a replay or a test.

    Args:
        config: the run.
        per_epoch: steps of one epoch.
        mesh: the devices; by default all there are, along the axes of the configuration.

    Raises:
        ValueError: the batch or the mesh does not fit the devices.
    """
    mesh = make_mesh(config.mesh) if mesh is None else mesh
    check_batch(config, mesh)
    total = total_steps(config, per_epoch)
    schedule = build_schedule(config, per_epoch, total)
    network = build_generator_network(config)
    optimizer = build_generator_optimizer(config.optimizer, schedule, total)
    abstract = abstract_generator_state(config, network, optimizer, mesh)
    step = GeneratorStep(config, network, optimizer, mesh, shardings_of(abstract))
    return GeneratorRun(config, mesh, total, schedule, network, optimizer, abstract, step)
