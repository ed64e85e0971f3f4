"""A tokenizer's run as the training loop sees it: images in, autoencoder against discriminator, reconstructions."""

from __future__ import annotations

from typing import Any

import numpy as np

from voken_common.config.schedules import build_schedule
from voken_common.config.tokenizer import Config
from voken_common.training.log import SHOWN, RunLog
from voken_common.training.validation import report
from voken_torch.device.runtime import Runtime
from voken_torch.device.transfer import on_device
from voken_torch.parallel.sharding import process_count, process_index
from voken_torch.parallel.task import Metrics, Task, size_of, tell
from voken_torch.tokenizer.perceptual import load_perceptual
from voken_torch.tokenizer.state import TrainState, create_state
from voken_torch.tokenizer.step import TokenizerStep
from voken_torch.tokenizer.validation import Validator


def open_images(config: Config) -> Any:
    """The training images."""
    # Imported late: Grain loads JAX where JAX is installed.
    from voken_common.data.inspection import look_through
    from voken_common.data.pipeline import build_train_iterator
    from voken_common.data.sources.build import build_source

    source = build_source(config.data.train)
    tell("training on %s", source.describe())
    if config.data.validation is None:
        tell("data.validation is not set: no validation, no pictures")
    look_through(config.data, source)
    return build_train_iterator(
        config.data,
        batch_size_per_process=config.training.batch_size // process_count(),
        seed=config.seed,
        process_index=process_index(),
        process_count=process_count(),
        source=source,
    )


class TokenizerTask(Task):
    """State, step and validator of a tokenizer.

    Args:
        config: the run.
        per_epoch: steps of one epoch.
        runtime: this process's device.
    """

    config: Config
    state: TrainState
    shown = SHOWN

    def __init__(self, config: Config, per_epoch: int, runtime: Runtime):
        self.config, self.runtime, self.rates = config, runtime, {}
        self.total_steps = config.training.steps or (config.training.epochs or 0) * per_epoch
        self.schedule = build_schedule(config, per_epoch, self.total_steps)
        perceptual = load_perceptual(config, runtime)
        if perceptual is None:
            tell("perceptual.weights is none: training WITHOUT perceptual loss (and validation without LPIPS)")
        self.state = create_state(config, runtime)
        self.program = TokenizerStep(config, self.state, self.schedule, runtime, perceptual)
        self.seen_codes = self.program.seen_codes
        self.validator = Validator(config, self.state, runtime, perceptual)
        tell(
            "%s: %s parameters (discriminator %s), %d steps, %d process(es) on %s",
            config.name,
            f"{size_of(self.state.generator):,}",
            f"{size_of(self.state.discriminator):,}",
            self.total_steps,
            process_count(),
            runtime.device,
        )

    def step(self, batch: dict[str, np.ndarray]) -> Metrics:
        """One step of both players."""
        # Channels move forward on the device, which is quicker at it.
        images = on_device(batch, self.runtime.device)[self.config.data.pixels].movedim(-1, 1).contiguous()
        return self.program(self.state, images)

    def logged(self, means: dict[str, float], number: int) -> dict[str, float]:
        """The means and the learning rate."""
        return {**means, "learning_rate": self.config.optimizer.learning_rate * float(self.schedule(number - 1))}

    @property
    def validates(self) -> bool:
        """Whether held-out images are set."""
        return self.config.data.validation is not None

    def validate(self, log: RunLog, number: int) -> dict[str, float]:
        """Reconstruct held-out images with the averaged weights."""
        from voken_common.data.pipeline import build_validation_batches

        batches = build_validation_batches(
            self.config.data,
            batch_size=self.config.validation.batch_size // process_count(),
            process_index=process_index(),
            process_count=process_count(),
            max_images=self.config.validation.max_images,
            labelled=False,
        )
        result = self.validator(batches)
        report(log, number, result, batches.num_images)
        return result.metrics
