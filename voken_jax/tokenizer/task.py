"""A tokenizer's run as the training loop sees it: images in, autoencoder against discriminator, reconstructions."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import Array

from voken_common.config.schema.tokenizer import Config
from voken_common.training.data import validation_batches
from voken_common.training.log import SHOWN, RunLog
from voken_common.training.task import Task
from voken_common.training.validation import report
from voken_jax.optimization.finite import Metrics, cleared
from voken_jax.parallel.distributed import processes
from voken_jax.parallel.sharding import batch_sharding, size_of
from voken_jax.tokenizer.build import build_run
from voken_jax.tokenizer.perceptual import load_perceptual
from voken_jax.tokenizer.state import TrainState
from voken_jax.tokenizer.validation import Validator

logger = logging.getLogger("voken")


class TokenizerTask(Task):
    """A tokenizer's run and its validator on a mesh over all devices.

    Args:
        config: the run.
        per_epoch: steps of one epoch.

    Attributes:
        codes: size of the codebook that is trained.
        abstract: shapes, dtypes and shardings of the state, as ShapeDtypeStructs.
    """

    config: Config
    state: TrainState
    shown = SHOWN

    def __init__(self, config: Config, per_epoch: int):
        perceptual = load_perceptual(config)
        if perceptual is None:
            logger.info("perceptual.weights is none: training WITHOUT perceptual loss (and validation without LPIPS)")
        self.run = build_run(config, per_epoch, perceptual)
        self.config, self.mesh, self.rates = config, self.run.mesh, {}
        self.codes, self.total_steps = config.quantizer.codebook_size, self.run.total_steps
        self.abstract, self.players = self.run.abstract, self.run.players
        self.validator = Validator(config, self.players.autoencoder, self.mesh, perceptual)
        logger.info(
            "%s: %s parameters (discriminator %s), %d steps, %d device(s): %s",
            config.name,
            f"{size_of(self.players.autoencoder.parameters):,}",
            f"{size_of(self.players.discriminator.parameters):,}",
            self.total_steps,
            self.mesh.size,
            jax.devices()[0].device_kind,
        )

    def begin(self) -> None:
        """Start from a fresh state."""
        self.state = self.run.create_state()

    def on_disk(self) -> TrainState:
        """Return the state itself."""
        return self.state

    def target(self) -> TrainState:
        """Return the shapes of the state."""
        return self.abstract

    def resume(self, restored: TrainState) -> None:
        """Continue from a restored state."""
        self.state = restored

    def clear_failure(self) -> None:
        """Let the state move again after a refused step."""
        self.state = cleared(self.state)

    def step(self, batch: Mapping[str, np.ndarray]) -> tuple[Metrics, Array]:
        """Make one step of both players.

        Returns:
            The metrics, and the ids of the codes that the images became, (micro-batches, samples, ...).
        """
        images = jax.make_array_from_process_local_data(batch_sharding(self.mesh), batch[self.config.data.pixels])
        self.state, metrics, ids = self.run.step(self.state, images)
        return metrics, ids

    def metrics_of(self, batch: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Make one step and return its metrics."""
        return {name: float(value) for name, value in self.step(batch)[0].items()}

    def logged(self, means: dict[str, float], number: int) -> dict[str, float]:
        """Add the learning rate."""
        return {**means, "learning_rate": self.config.optimizer.learning_rate * float(self.run.schedule(number - 1))}

    @property
    def validates(self) -> bool:
        """True if held-out images are set."""
        return self.config.data.validation is not None

    def validate(self, log: RunLog, number: int) -> dict[str, float]:
        """Reconstruct held-out images with the averaged weights."""
        batches = validation_batches(self.config, processes())
        result = self.validator(self.state.generator_ema, batches)
        report(log, number, result, batches.num_images, batches.source.key)
        return result.metrics
