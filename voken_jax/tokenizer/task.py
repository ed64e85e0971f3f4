"""A tokenizer's run as the training loop sees it: images in, autoencoder against discriminator, reconstructions."""

from __future__ import annotations

import logging

import jax
import numpy as np

from voken_common.config.schedules import build_schedule
from voken_common.config.tokenizer import Config
from voken_common.data.inspection import look_through
from voken_common.data.pipeline import TrainIterator, build_train_iterator, build_validation_batches
from voken_common.data.sources.build import build_source
from voken_common.training.log import SHOWN, RunLog
from voken_common.training.validation import report
from voken_jax.optimization.optim import build_optimizer
from voken_jax.parallel.sharding import batch_sharding, check_batch, make_mesh
from voken_jax.parallel.task import Metrics, Task, shardings_of, size_of
from voken_jax.tokenizer.perceptual import load_perceptual
from voken_jax.tokenizer.state import TrainState, abstract_state, build_players, create_state
from voken_jax.tokenizer.step import TokenizerStep
from voken_jax.tokenizer.validation import Validator

logger = logging.getLogger("voken")


def open_images(config: Config) -> TrainIterator:
    """The training images."""
    source = build_source(config.data.train)
    logger.info("training on %s", source.describe())
    if config.data.validation is None:
        logger.info("data.validation is not set: no validation, no pictures")
    look_through(config.data, source)
    return build_train_iterator(
        config.data,
        batch_size_per_process=config.training.batch_size // jax.process_count(),
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        source=source,
    )


class TokenizerTask(Task):
    """Networks, optimizer, step and validator of a tokenizer on a mesh over all devices.

    Args:
        config: the run.
        per_epoch: steps of one epoch.
    """

    config: Config
    abstract: TrainState
    shown = SHOWN

    def __init__(self, config: Config, per_epoch: int):
        self.config, self.mesh, self.rates = config, make_mesh(config.mesh), {}
        self.codes = config.quantizer.codebook_size
        check_batch(config, self.mesh)
        self.total_steps = config.training.steps or (config.training.epochs or 0) * per_epoch
        self.schedule = build_schedule(config, per_epoch, self.total_steps)
        self.players, self.optimizer = build_players(config), build_optimizer(config.optimizer, self.schedule)
        perceptual = load_perceptual(config)
        if perceptual is None:
            logger.info("perceptual.weights is none: training WITHOUT perceptual loss (and validation without LPIPS)")
        self.abstract = abstract_state(config, self.players, self.optimizer, self.mesh)
        shardings = shardings_of(self.abstract)
        self.program = TokenizerStep(config, self.players, self.optimizer, self.mesh, shardings, perceptual)
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

    def create(self) -> TrainState:
        """A fresh state."""
        return create_state(self.config, self.players, self.optimizer, self.mesh)

    def place(self, batch: dict[str, np.ndarray]) -> jax.Array:
        """The images or clips."""
        return jax.make_array_from_process_local_data(batch_sharding(self.mesh), batch[self.config.data.pixels])

    def step(self, state: TrainState, batch: jax.Array) -> tuple[TrainState, Metrics, jax.Array]:
        """One step of both players."""
        return self.program.with_ids(state, batch)

    def logged(self, means: dict[str, float], number: int) -> dict[str, float]:
        """The means and the learning rate."""
        return {**means, "learning_rate": self.config.optimizer.learning_rate * float(self.schedule(number - 1))}

    @property
    def validates(self) -> bool:
        """Whether held-out images are set."""
        return self.config.data.validation is not None

    def validate(self, state: TrainState, log: RunLog, number: int) -> dict[str, float]:
        """Reconstruct held-out images with the averaged weights."""
        batches = build_validation_batches(
            self.config.data,
            batch_size=self.config.validation.batch_size // jax.process_count(),
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            max_images=self.config.validation.max_images,
            labelled=False,
        )
        result = self.validator(state.generator_ema, batches)
        report(log, number, result, batches.num_images)
        return result.metrics
