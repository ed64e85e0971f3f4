"""The training loop of both frameworks: steps, logging, validation, checkpoints, a clean stop, and signs of life."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from voken_common.checkpoints.steps import Progress
from voken_common.data.errors import DataError
from voken_common.processes import Processes
from voken_common.training.collapse import CodeUse, CollapseWatch
from voken_common.training.health import INPUT_ADVICE, Heartbeat, InputWatch
from voken_common.training.log import RunLog
from voken_common.training.profiling import Profiler
from voken_common.training.stop import AgreedStop
from voken_common.training.task import Task


class Steps(Protocol):
    """The optimizer steps of a run; see `voken_jax.training.step_queue` and `voken_torch.training.step_queue`."""

    number: int

    def step(self, batch: dict[str, np.ndarray]) -> None:
        """Start or make one step."""

    def settle(self) -> bool:
        """Wait for all steps; whether one was refused, so that `number` is less than it was."""

    def means(self) -> dict[str, float]:
        """Means of the metrics since the last call."""

    def code_use(self) -> CodeUse | None:
        """The codes used since the last call, over all processes, which all call it; None: there is no codebook."""

    def progress(self) -> Progress:
        """Return the progress that a checkpoint holds besides the state."""


class Saves(Protocol):
    """Checkpoints, as far as the loop has to know."""

    def save(
        self, state: Any, config: Any, iterator: Any, metrics: dict[str, float], progress: Progress | None = None
    ) -> None:
        """Write the current step."""


class RunLoop:
    """One run, from the step it starts at to its end or until it is stopped.

    Args:
        task: what is trained.
        steps: its optimizer steps.
        batches: the training data of this process.
        workdir: where everything is written.
        checkpoints: the steps kept on disk.
        processes: those that train together.
        stop: tells when to stop before the end.
        profiler: traces some steps.
    """

    def __init__(
        self,
        task: Task,
        steps: Steps,
        batches: Iterator[Any],
        workdir: Path,
        checkpoints: Saves,
        processes: Processes,
        stop: AgreedStop,
        profiler: Profiler,
    ):
        self._task, self._steps, self._batches, self._checkpoints = task, steps, batches, checkpoints
        self._processes, self._stop, self._profiler = processes, stop, profiler
        config = task.config
        self._collapse = CollapseWatch(config.health, steps.number)
        self._log = RunLog(
            workdir,
            total_steps=task.total_steps,
            first_step=steps.number,
            images_per_step=config.training.batch_size,
            rates=task.rates,
            collapse=self._collapse,
            unit="clips" if getattr(config.data, "is_video", False) else "images",
            enabled=processes.first,
        )
        self._heartbeat = Heartbeat(workdir, config.health, config.training.batch_size, processes.first)
        self._watch = InputWatch(config.health, INPUT_ADVICE)
        self._reached = self._saved = steps.number

    def to_the_end(self) -> dict[str, float] | None:
        """Train; the metrics of the validation at the last step, or None for a run that was stopped before."""
        steps, validated = self._steps, {}
        with self._log, self._heartbeat.lasting(lambda: steps.number), self._watch, self._profiler as profiler:
            # What is left of an earlier run would look like a loop that hangs while the first step is compiled.
            self._heartbeat.beat(steps.number, "starting")
            while steps.number < self._task.total_steps:
                batch = self._next_batch()
                profiler.before_step()
                steps.step(batch)
                self._log.advance()
                self._heartbeat.beat(steps.number)
                stopping = self._stop.agreed()
                if not stopping and not self._due(steps.number):
                    continue
                # A refused step takes its number back, so that it is not yet time.
                settled = not steps.settle() and steps.number > self._reached
                validated = self._after(steps.number) if settled else {}
                if stopping:
                    self._save(steps.number, validated)
                    self._heartbeat.beat(steps.number, "stopped")
                    self._log.message(
                        f"stopped at step {steps.number}, checkpoint written: run the same command to continue"
                    )
                    return None
            self._heartbeat.beat(steps.number, "finished")
        return validated

    def _next_batch(self) -> Any:
        """The next batch; where none comes any more, the steps that were made are saved before the error goes on.

        Of several processes the others are already waiting for this one's next step, and cannot save with it.
        """
        try:
            with self._watch.waiting():
                return next(self._batches)
        except DataError as error:
            if self._processes.alone and self._steps.number > self._saved:
                self._steps.settle()
                self._save(self._steps.number, {})
                reason = " ".join(str(error).split())
                self._log.message(
                    f"step {self._steps.number} is saved before the run ends, for want of data: "
                    f"{reason[:300]}{'...' if len(reason) > 300 else ''}"
                )
            raise

    def _due(self, number: int) -> bool:
        """True if anything is due after a step."""
        config = self._task.config
        paces = (config.training.log_every, config.validation.every, config.checkpoint.every)
        return number == self._task.total_steps or any(number % pace == 0 for pace in paces)

    def _after(self, number: int) -> dict[str, float]:
        """Log, validate and save where it is time to; what validation gave."""
        config, last = self._task.config, number == self._task.total_steps
        self._reached = number
        # A run that is stopped and continued logs what one without a break does: no means over a part of the steps.
        if last or number % config.training.log_every == 0:
            means, use = self._task.logged(self._steps.means(), number), self._steps.code_use()
            if use is not None and use.tokens:
                means |= {"codebook_usage": use.share, "codebook_usage_possible": use.possible}
            self._log.training(number, means, self._task.shown)
            if use is not None and (warning := self._collapse.trained(number, use)):
                self._log.warning(warning)
        validated: dict[str, float] = {}
        if self._task.validates and (last or number % config.validation.every == 0):
            self._heartbeat.beat(number, "validating")
            validated = self._task.validate(self._log, number)
        if last or number % config.checkpoint.every == 0:
            self._save(number, validated)
        if number % config.validation.every == 0 or number % config.checkpoint.every == 0:
            self._log.pause(number)
        return validated

    def _save(self, number: int, validated: dict[str, float]) -> None:
        self._heartbeat.beat(number, "saving")
        self._log.flush()
        task = self._task
        self._checkpoints.save(task.on_disk(), task.config, self._batches, validated, self._steps.progress())
        self._saved = number
