"""A tokenizer's run as the training loop sees it: images in, autoencoder against discriminator, reconstructions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from voken_common.config.schedules import build_schedule, total_steps
from voken_common.config.schema.tokenizer import Config
from voken_common.training.data import validation_batches
from voken_common.training.log import SHOWN, RunLog
from voken_common.training.validation import report
from voken_torch.device.runtime import Runtime
from voken_torch.device.transfer import on_device
from voken_torch.optimization.finite import Metrics
from voken_torch.optimization.task import InPlaceTask
from voken_torch.parallel.sharding import processes, size_of
from voken_torch.tokenizer.perceptual import load_perceptual
from voken_torch.tokenizer.state import TrainState, create_state
from voken_torch.tokenizer.step import TokenizerStep
from voken_torch.tokenizer.validation import Validator


class TokenizerTask(InPlaceTask):
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
        self.total_steps = total_steps(config, per_epoch)
        everyone = processes(runtime.device)
        self.schedule = build_schedule(config, per_epoch, self.total_steps)
        perceptual = load_perceptual(config, runtime)
        if perceptual is None:
            everyone.tell("perceptual.weights is none: training WITHOUT perceptual loss (and validation without LPIPS)")
        self.state = create_state(config, runtime)
        self.program = TokenizerStep(config, self.state, self.schedule, runtime, perceptual)
        self.seen_codes = self.program.seen_codes
        self.validator = Validator(config, self.state, runtime, perceptual)
        everyone.tell(
            "%s: %s parameters (discriminator %s), %d steps, %d process(es) on %s",
            config.name,
            f"{size_of(self.state.generator):,}",
            f"{size_of(self.state.discriminator):,}",
            self.total_steps,
            everyone.count,
            runtime.device,
        )

    def step(self, batch: Mapping[str, np.ndarray]) -> Metrics:
        """Make one step of both players."""
        # Channels move forward on the device, which is quicker at it.
        images = on_device(batch, self.runtime.device)[self.config.data.pixels].movedim(-1, 1).contiguous()
        return self.program(self.state, images)

    def logged(self, means: dict[str, float], number: int) -> dict[str, float]:
        """Add the learning rate."""
        return {**means, "learning_rate": self.config.optimizer.learning_rate * float(self.schedule(number - 1))}

    @property
    def validates(self) -> bool:
        """True if held-out images are set."""
        return self.config.data.validation is not None

    def validate(self, log: RunLog, number: int) -> dict[str, float]:
        """Reconstruct held-out images with the averaged weights."""
        batches = validation_batches(self.config, processes(self.runtime.device))
        result = self.validator(batches)
        report(log, number, result, batches.num_images, batches.source.key)
        return result.metrics
