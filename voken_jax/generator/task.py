"""A generator's run as the training loop sees it: tokens and classes in, cross entropy, held-out loss, and samples."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from voken_common.config.schema.generator import GeneratorConfig
from voken_common.data.generator_data import with_origin
from voken_common.training import generator_logs
from voken_common.training.log import RunLog
from voken_common.training.task import Task
from voken_common.visual import grid
from voken_jax.generator.build import build_run
from voken_jax.generator.data import GeneratorData
from voken_jax.generator.step import GeneratorState
from voken_jax.generator.validation import GeneratorValidator
from voken_jax.models.functional import Weights
from voken_jax.models.stacked import in_state, stack_layers, unstack_layers
from voken_jax.optimization.finite import Metrics, cleared
from voken_jax.parallel.distributed import processes
from voken_jax.parallel.sharding import make_mesh, shardings_of, size_of, with_shardings

logger = logging.getLogger("voken")


class GeneratorTask(Task):
    """Network, optimizer, step and validator of a generator on a mesh over all devices.

    Args:
        config: the run.
        per_epoch: steps of one epoch.
        tokenizer: checkpoint of the tokenizer; None: where the configuration says.

    Attributes:
        codes: None, as no codebook is trained.
        abstract: shapes, dtypes and shardings of the state on disk, as ShapeDtypeStructs.
    """

    config: GeneratorConfig
    state: GeneratorState
    codes = None

    def __init__(self, config: GeneratorConfig, per_epoch: int, tokenizer: Path | None = None):
        self.mesh = make_mesh(config.mesh)
        self.data = GeneratorData(config, self.mesh, tokenizer)
        encoder = self.data.tokenizer
        self.config = config = with_origin(config, None if encoder is None else encoder.fingerprint)
        self.run = build_run(config, per_epoch, self.mesh)
        self.total_steps, self.shown = self.run.total_steps, generator_logs.shown(config)
        self.rates = generator_logs.rates(config, jax.devices()[0].device_kind, self.mesh.size)
        running, network = self.run.abstract, self.run.network
        flat = jax.eval_shape(functools.partial(in_state, unstack_layers), running)
        self.abstract = with_shardings(flat, self.mesh, config)
        # On disk every layer has its own weights.
        self._split = jax.jit(functools.partial(in_state, unstack_layers), out_shardings=shardings_of(self.abstract))
        self._join = jax.jit(functools.partial(in_state, stack_layers), out_shardings=shardings_of(running))
        self.validator = GeneratorValidator(config, network, self.mesh)
        logger.info(
            "%s: %s parameters, %d steps, %d device(s): %s",
            config.name,
            f"{size_of(network.parameters):,}",
            self.total_steps,
            self.mesh.size,
            jax.devices()[0].device_kind,
        )

    def begin(self) -> None:
        """Start from a fresh state."""
        self.state = self.run.create_state()

    def on_disk(self) -> GeneratorState:
        """Return the state with every layer by itself."""
        return self._split(self.state)

    def target(self) -> GeneratorState:
        """Return the shapes of the state with every layer by itself."""
        return self.abstract

    def resume(self, restored: GeneratorState) -> None:
        """Continue from a restored state, all layers in one array."""
        self.state = self._join(restored)

    def clear_failure(self) -> None:
        """Let the state move again after a refused step."""
        self.state = cleared(self.state)

    def step(self, batch: Mapping[str, np.ndarray]) -> tuple[Metrics, None]:
        """Make one step of AdamW; return its metrics, and no ids of codes."""
        self.state, metrics = self.run.step(self.state, self.data.place(batch))
        return metrics, None

    def metrics_of(self, batch: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Make one step and return its metrics."""
        return {name: float(value) for name, value in self.step(batch)[0].items()}

    def logged(self, means: dict[str, float], number: int) -> dict[str, float]:
        """Add perplexities of the mean losses, learning rate and weight decay."""
        return generator_logs.with_schedules(self.config, means, self.run.schedule, number, self.total_steps)

    @property
    def validates(self) -> bool:
        """True if held-out tokens or images are set."""
        return self.config.data.held_out

    def validate(self, log: RunLog, number: int) -> dict[str, float]:
        """Loss on held-out tokens with the averaged weights, if there are any, and a grid of decoded samples."""
        state = self.state
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
        if processes().first:
            log.picture(number, "samples", grid(tokenizer.decode(tokens)))
