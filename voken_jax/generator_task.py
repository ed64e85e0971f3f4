"""A generator's run as the training loop sees it: tokens and classes in, cross entropy, held-out loss."""

from __future__ import annotations

import logging
import math
from typing import Any

import jax
import numpy as np

from voken_common.generator_schema import GeneratorConfig
from voken_common.run_log import RunLog
from voken_common.schedules import build_schedule, cosine_weight_decay
from voken_jax.generator_step import (
    Batch,
    GeneratorState,
    GeneratorStep,
    abstract_generator_state,
    create_generator_state,
)
from voken_jax.optim import build_generator_optimizer
from voken_jax.sharding import batch_sharding, check_batch, make_mesh
from voken_jax.state import build_generator_network
from voken_jax.task import Metrics, Task, shardings_of, size_of

logger = logging.getLogger("voken")


def open_tokens(config: GeneratorConfig) -> Any:
    """The training tokens."""
    raise NotImplementedError("training data of generators follows")


class GeneratorTask(Task):
    """Network, optimizer and step of a generator on a mesh over all devices.

    Args:
        config: the run.
        per_epoch: steps of one epoch.
    """

    config: GeneratorConfig
    abstract: GeneratorState

    def __init__(self, config: GeneratorConfig, per_epoch: int):
        self.config, self.mesh = config, make_mesh(config.mesh)
        check_batch(config, self.mesh)
        self.total_steps = config.training.steps or (config.training.epochs or 0) * per_epoch
        self.shown = ("loss", *(f"accuracy{suffix}" for suffix in _suffixes(config)))
        self.rates = {"tokens_per_second": float(config.model.tokens)}
        self.schedule = build_schedule(config, per_epoch, self.total_steps)
        self.network = build_generator_network(config)
        self.optimizer = build_generator_optimizer(config.optimizer, self.schedule, self.total_steps)
        self.abstract = abstract_generator_state(config, self.network, self.optimizer, self.mesh)
        self.program = GeneratorStep(config, self.network, self.optimizer, self.mesh, shardings_of(self.abstract))
        logger.info(
            "%s: %s parameters, %d steps, %d device(s): %s",
            config.name,
            f"{size_of(self.network.parameters):,}",
            self.total_steps,
            self.mesh.size,
            jax.devices()[0].device_kind,
        )

    def create(self) -> GeneratorState:
        """A fresh state."""
        return create_generator_state(self.config, self.network, self.optimizer, self.mesh)

    def place(self, batch: dict[str, np.ndarray]) -> Batch:
        """Tokens (B, T, S) and labels (B,)."""
        where = batch_sharding(self.mesh)
        return {name: jax.make_array_from_process_local_data(where, batch[name]) for name in ("tokens", "labels")}

    def step(self, state: GeneratorState, batch: Batch) -> tuple[GeneratorState, Metrics]:
        """One step of AdamW."""
        return self.program(state, batch)

    def logged(self, means: dict[str, float], number: int) -> dict[str, float]:
        """The means, perplexity of the mean loss, learning rate and weight decay."""
        optimizer = self.config.optimizer
        end = optimizer.weight_decay_end or optimizer.weight_decay
        decay = cosine_weight_decay(number - 1, optimizer.weight_decay, end, self.total_steps)
        perplexities = {f"perplexity{s}": math.exp(means[f"loss{s}"]) for s in _suffixes(self.config)}
        scheduled = {
            "learning_rate": optimizer.learning_rate * float(self.schedule(number - 1)),
            "weight_decay": float(decay),
        }
        return {**means, **perplexities, **scheduled}

    def validate(self, state: GeneratorState, log: RunLog, number: int) -> dict[str, float]:
        """Loss on held-out tokens."""
        raise NotImplementedError("validation of generators follows")


def _suffixes(config: GeneratorConfig) -> tuple[str, ...]:
    """What follows a metric's name for each sub-token."""
    parts = len(config.model.vocabularies)
    return ("",) if parts == 1 else tuple(f"_{part}" for part in range(parts))
