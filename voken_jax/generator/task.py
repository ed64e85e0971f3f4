"""A generator's run as the training loop sees it: tokens and classes in, cross entropy, held-out loss, and samples."""

from __future__ import annotations

import functools
import logging
from pathlib import Path

import jax
import numpy as np

from voken_common.config.generator import GeneratorConfig
from voken_common.config.schedules import build_schedule
from voken_common.data.generator_data import with_origin
from voken_common.training import generator_logs
from voken_common.training.log import RunLog
from voken_common.visual import grid
from voken_jax.generator.data import GeneratorData
from voken_jax.generator.step import (
    Batch,
    GeneratorState,
    GeneratorStep,
    abstract_generator_state,
    create_generator_state,
)
from voken_jax.generator.validation import GeneratorValidator
from voken_jax.models.functional import Weights
from voken_jax.models.stacked import in_state, stack_layers, unstack_layers
from voken_jax.optimization.optim import build_generator_optimizer
from voken_jax.parallel.sharding import check_batch, make_mesh, with_shardings
from voken_jax.parallel.task import Metrics, Task, shardings_of, size_of
from voken_jax.tokenizer.state import build_generator_network

logger = logging.getLogger("voken")


class GeneratorTask(Task):
    """Network, optimizer, step and validator of a generator on a mesh over all devices.

    Args:
        config: the run.
        per_epoch: steps of one epoch.
        tokenizer: checkpoint of the tokenizer; None: where the configuration says.
    """

    config: GeneratorConfig
    abstract: GeneratorState

    def __init__(self, config: GeneratorConfig, per_epoch: int, tokenizer: Path | None = None):
        self.mesh = make_mesh(config.mesh)
        check_batch(config, self.mesh)
        self.data = GeneratorData(config, self.mesh, tokenizer)
        encoder = self.data.tokenizer
        self.config = config = with_origin(config, None if encoder is None else encoder.fingerprint)
        self.total_steps = config.training.steps or (config.training.epochs or 0) * per_epoch
        self.shown = generator_logs.shown(config)
        self.rates = generator_logs.rates(config, jax.devices()[0].device_kind, self.mesh.size)
        self.schedule = build_schedule(config, per_epoch, self.total_steps)
        self.network = build_generator_network(config)
        self.optimizer = build_generator_optimizer(config.optimizer, self.schedule, self.total_steps)
        running = abstract_generator_state(config, self.network, self.optimizer, self.mesh)
        flat = jax.eval_shape(functools.partial(in_state, unstack_layers), running)
        self.abstract = with_shardings(flat, self.mesh, config)
        self.program = GeneratorStep(config, self.network, self.optimizer, self.mesh, shardings_of(running))
        # On disk every layer has its own weights.
        self._split = jax.jit(functools.partial(in_state, unstack_layers), out_shardings=shardings_of(self.abstract))
        self._join = jax.jit(functools.partial(in_state, stack_layers), out_shardings=shardings_of(running))
        self.validator = GeneratorValidator(config, self.network, self.mesh)
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

    def to_disk(self, state: GeneratorState) -> GeneratorState:
        """Every layer by itself."""
        return self._split(state)

    def from_disk(self, state: GeneratorState) -> GeneratorState:
        """All layers in one array."""
        return self._join(state)

    def place(self, batch: dict[str, np.ndarray]) -> Batch:
        """Tokens and labels."""
        return self.data.place(batch)

    def step(self, state: GeneratorState, batch: Batch) -> tuple[GeneratorState, Metrics, None]:
        """One step of AdamW."""
        return *self.program(state, batch), None

    def logged(self, means: dict[str, float], number: int) -> dict[str, float]:
        """The means, perplexities of the mean losses, learning rate and weight decay."""
        return generator_logs.with_schedules(self.config, means, self.schedule, number, self.total_steps)

    @property
    def validates(self) -> bool:
        """Whether held-out tokens or images are set."""
        return self.config.data.held_out

    def validate(self, state: GeneratorState, log: RunLog, number: int) -> dict[str, float]:
        """Loss on held-out tokens with the averaged weights, if there are any, and a grid of decoded samples."""
        weights = state.generator_ema or state.generator
        batches, samples = self.data.held_out()
        metrics = self.validator(weights, batches)
        log.scalars(number, metrics, prefix="validation/")
        text = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        log.message(f"step {number}  validation ({'EMA, ' if state.generator_ema else ''}{samples} samples):  {text}")
        self._show(weights, log, number)
        return metrics

    def _show(self, weights: Weights, log: RunLog, number: int) -> None:
        pictures, tokenizer = self.config.validation.pictures, self.data.tokenizer
        if tokenizer is None or not pictures:
            return
        tokens = self.validator.sample(weights, generator_logs.shown_labels(pictures, self.config.model.classes))
        if jax.process_index() == 0:
            log.picture(number, "samples", grid(tokenizer.decode(tokens)))
