"""The training loop of tokenizers and generators: step, logging, validation, checkpoints, resume and a clean stop."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import jax

from voken_common.checkpoints import Progress, check_same_run
from voken_common.config import AnyConfig, to_yaml
from voken_common.files import replacing
from voken_common.health import INPUT_ADVICE, CollapseWatch, Heartbeat, InputWatch
from voken_common.run_lock import held
from voken_common.run_log import RunLog
from voken_common.schema import Config
from voken_jax.checkpoint import Checkpoints
from voken_jax.generator_data import open_tokens
from voken_jax.generator_task import GeneratorTask
from voken_jax.profiling import Profiler
from voken_jax.steps import Steps
from voken_jax.stop import AgreedStop, any_process
from voken_jax.task import Task
from voken_jax.tokenizer_task import TokenizerTask, open_images

logger = logging.getLogger("voken")


def train(config: AnyConfig, workdir: Path, profile: int = 0) -> dict[str, float]:
    """Train to the end of the configuration, from the newest good checkpoint of `workdir` if there is one.

    Args:
        config: of a tokenizer or a generator.
        workdir: where everything is written; no other run may use it meanwhile.
        profile: trace this many steps.

    Returns:
        The metrics of the last validation; empty where there is no validation source or the run was stopped.

    Raises:
        ValueError: settings, data, a checkpoint or a work directory that cannot be used.
        NonFiniteError: the run diverged; the state before the failing update is in the last checkpoint.
    """
    iterator = open_data(config)
    try:
        task = build(config, -(-len(iterator.source) // config.training.batch_size))
        with held(workdir, jax.process_index() == 0, any_process):
            checkpoints = Checkpoints(workdir, config.checkpoint)
            try:
                state, progress = _start(task, checkpoints, iterator)
                _write_config(workdir, config)
                steps = Steps(task, state, progress, workdir)
                return _Run(task, steps, iterator, checkpoints, workdir, profile).to_the_end()
            finally:
                checkpoints.close()
    finally:
        iterator.close()


def open_data(config: AnyConfig) -> Any:
    """The training data of a run, as an iterator that remembers its `source`."""
    return open_images(config) if isinstance(config, Config) else open_tokens(config)


def build(config: AnyConfig, per_epoch: int) -> Task:
    """Networks, optimizer and programs on a mesh over all devices; `per_epoch` is the number of steps of an epoch."""
    return TokenizerTask(config, per_epoch) if isinstance(config, Config) else GeneratorTask(config, per_epoch)


def _start(task: Task, checkpoints: Checkpoints, iterator: Any) -> tuple[Any, Progress]:
    latest = checkpoints.recover()
    if latest is None:
        return task.create(), Progress()
    meta = checkpoints.meta(latest)
    changed = check_same_run(meta.config, task.config)
    if changed:
        logger.info("settings changed since the checkpoint: %s", ", ".join(changed))
    logger.info("continuing at step %d", latest)
    return checkpoints.restore(task.abstract, iterator), meta.progress


def _write_config(workdir: Path, config: AnyConfig) -> None:
    if jax.process_index() == 0:
        with replacing(workdir / "config.yaml") as file:
            file.write(to_yaml(config).encode())


class _Run:
    """The loop over steps, and what happens after some of them."""

    def __init__(self, task: Task, steps: Steps, iterator: Any, checkpoints: Checkpoints, workdir: Path, profile: int):
        self._task, self._steps, self._iterator, self._checkpoints = task, steps, iterator, checkpoints
        config, first_process = task.config, jax.process_index() == 0
        self._first = steps.number
        self._log = RunLog(
            workdir,
            total_steps=task.total_steps,
            first_step=steps.number,
            images_per_step=config.training.batch_size,
            rates=task.rates,
            collapse=CollapseWatch(config.health),
            enabled=first_process,
        )
        self._heartbeat = Heartbeat(workdir, config.health, config.training.batch_size, first_process)
        self._watch = InputWatch(config.health, INPUT_ADVICE)
        self._profiler = Profiler(workdir, profile)

    def to_the_end(self) -> dict[str, float]:
        """Train; see `train`."""
        steps, total = self._steps, self._task.total_steps
        validated: dict[str, float] = {}
        with (
            self._log,
            self._heartbeat.lasting(lambda: steps.number),
            self._watch,
            self._profiler,
            AgreedStop() as stop,
        ):
            while steps.number < total:
                with self._watch.waiting():
                    batch = next(self._iterator)
                self._profiler.before_step()
                steps.take(batch)
                self._log.advance()
                self._heartbeat.beat(steps.number)
                stopping = stop.agreed(steps.number)
                if not (stopping or self._due(steps.number)):
                    continue
                validated = {} if steps.settle() else self._after(steps.number)
                if stopping:
                    self._save(steps.number, validated)
                    self._heartbeat.beat(steps.number, "stopped")
                    self._log.message(
                        f"stopped at step {steps.number}, checkpoint written: run the same command to continue"
                    )
                    return {}
            self._heartbeat.beat(steps.number, "finished")
        if self._first >= total:
            logger.info("the run is finished: step %d of %d is on disk", self._first, total)
            return self._checkpoints.meta(self._first).metrics
        return validated

    def _due(self, number: int) -> bool:
        config = self._task.config
        paces = (config.training.log_every, config.validation.every, config.checkpoint.every)
        return number == self._task.total_steps or any(number % pace == 0 for pace in paces)

    def _after(self, number: int) -> dict[str, float]:
        """Log, validate and save where it is time to; what validation gave."""
        config, last = self._task.config, number == self._task.total_steps
        # A run that is stopped and continued logs what one without a break does: no means over a part of the steps.
        if last or number % config.training.log_every == 0:
            self._log.training(number, self._task.logged(self._steps.means(), number), self._task.shown)
        validated: dict[str, float] = {}
        if self._task.validates and (last or number % config.validation.every == 0):
            self._heartbeat.beat(number, "validating")
            validated = self._task.validate(self._steps.state, self._log, number)
        if last or number % config.checkpoint.every == 0:
            self._save(number, validated)
        if number % config.validation.every == 0 or number % config.checkpoint.every == 0:
            self._log.pause()
        return validated

    def _save(self, number: int, validated: dict[str, float]) -> None:
        self._heartbeat.beat(number, "saving")
        state, progress = self._steps.state, self._steps.progress()
        self._checkpoints.save(state, self._task.config, self._iterator, validated, progress)
