"""The training loop of tokenizers and generators: step, logging, validation, checkpoints, resume and a clean stop."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import jax

from voken_common.atomic_write import replacing
from voken_common.checkpoints.frozen_tokenizer import tokenizer_of_run
from voken_common.checkpoints.lock import held
from voken_common.checkpoints.steps import Progress, check_same_run, require_framework
from voken_common.config.loading import AnyConfig, to_yaml
from voken_common.config.tokenizer import Config
from voken_common.training.loop import Hooks, RunLoop
from voken_common.training.profiling import FOLDER, Profiler
from voken_jax.checkpoints.orbax import Checkpoints
from voken_jax.generator.data import open_tokens
from voken_jax.generator.task import GeneratorTask
from voken_jax.parallel.task import Task
from voken_jax.tokenizer.task import TokenizerTask, open_images
from voken_jax.training.inflate import inflated_state
from voken_jax.training.step_queue import Steps
from voken_jax.training.stop import AgreedStop, any_process

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
    require_framework(workdir, "jax")
    iterator = open_data(config)
    try:
        per_epoch = -(-len(iterator.source) // config.training.batch_size)
        task = build(config, per_epoch, tokenizer_of_run(config, workdir))
        with held(workdir, jax.process_index() == 0, any_process):
            checkpoints = Checkpoints(workdir, config.checkpoint)
            try:
                state, progress = _start(task, checkpoints, iterator)
                _write_config(workdir, task.config)
                steps = Steps(task, state, progress, workdir)
                return _run(task, steps, iterator, checkpoints, workdir, profile)
            finally:
                checkpoints.close()
    finally:
        iterator.close()


def open_data(config: AnyConfig) -> Any:
    """The training data of a run, as an iterator that remembers its `source`."""
    return open_images(config) if isinstance(config, Config) else open_tokens(config)


def build(config: AnyConfig, per_epoch: int, tokenizer: Path | None = None) -> Task:
    """Networks, optimizer and programs on a mesh over all devices.

    Args:
        config: of a tokenizer or a generator.
        per_epoch: steps of one epoch.
        tokenizer: of a generator, its checkpoint; None: where the configuration says.
    """
    if isinstance(config, Config):
        return TokenizerTask(config, per_epoch)
    return GeneratorTask(config, per_epoch, tokenizer)


def _start(task: Task, checkpoints: Checkpoints, iterator: Any) -> tuple[Any, Progress]:
    latest = checkpoints.recover()
    if latest is None:
        state = task.create()
        return inflated_state(task.config, state) if isinstance(task.config, Config) else state, Progress()
    meta = checkpoints.meta(latest)
    changed = check_same_run(meta.config, task.config)
    if changed:
        logger.info("settings changed since the checkpoint: %s", ", ".join(changed))
    logger.info("continuing at step %d", latest)
    return task.from_disk(checkpoints.restore(task.abstract, iterator)), meta.progress


def _write_config(workdir: Path, config: AnyConfig) -> None:
    if jax.process_index() == 0:
        with replacing(workdir / "config.yaml") as file:
            file.write(to_yaml(config).encode())


def _run(
    task: Task, steps: Steps, iterator: Any, checkpoints: Checkpoints, workdir: Path, profile: int
) -> dict[str, float]:
    first, folder = steps.number, workdir / FOLDER
    with AgreedStop() as stop:
        hooks = Hooks(
            validate=lambda log, number: task.validate(steps.state, log, number),
            save=lambda metrics, progress: checkpoints.save(
                task.to_disk(steps.state), task.config, iterator, metrics, progress
            ),
            stops=stop.agreed,
            profiler=Profiler(folder, profile, lambda: jax.profiler.start_trace(str(folder)), _end_trace),
            first_process=jax.process_index() == 0,
            alone=jax.process_count() == 1,
        )
        validated = RunLoop(task, steps, iterator, workdir, hooks).to_the_end()
    if first >= task.total_steps:
        logger.info("the run is finished: step %d of %d is on disk", first, task.total_steps)
        return checkpoints.meta(first).metrics
    return validated or {}


def _end_trace() -> None:
    jax.effects_barrier()
    jax.profiler.stop_trace()
