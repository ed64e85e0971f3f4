"""The training loop of tokenizers and generators: step, logging, validation, checkpoints, resume and a clean stop."""

from __future__ import annotations

import collections
import logging
from pathlib import Path
from typing import Any

import jax
from clu import metrics as clu_metrics

from voken_common.checkpoints import check_same_run
from voken_common.config import AnyConfig, to_yaml
from voken_common.errors import NonFiniteError
from voken_common.files import replacing
from voken_common.run_log import RunLog, StopRequest
from voken_common.schema import Config
from voken_jax.checkpoint import Checkpoints
from voken_jax.generator_data import open_tokens
from voken_jax.generator_task import GeneratorTask
from voken_jax.task import Metrics, Task
from voken_jax.tokenizer_step import failed_terms
from voken_jax.tokenizer_task import TokenizerTask, open_images

logger = logging.getLogger("voken")

STEPS_IN_FLIGHT = 2


def train(config: AnyConfig, workdir: Path) -> dict[str, float]:
    """Train to the end of the configuration, from the newest checkpoint of `workdir` if there is one.

    Returns:
        The metrics of the last validation; empty where there is no validation source or the run was stopped.

    Raises:
        ValueError: settings, data or a checkpoint that cannot be used.
        NonFiniteError: the run diverged; the state before the failing update is in the last checkpoint.
    """
    iterator = open_data(config)
    task = build(config, -(-len(iterator.source) // config.training.batch_size))
    checkpoints = Checkpoints(workdir, config.checkpoint)
    try:
        state = _start(task, checkpoints, iterator)
        _write_config(workdir, config)
        return _loop(task, state, iterator, checkpoints, workdir)
    finally:
        iterator.close()
        checkpoints.close()


def open_data(config: AnyConfig) -> Any:
    """The training data of a run, as an iterator that remembers its `source`."""
    return open_images(config) if isinstance(config, Config) else open_tokens(config)


def build(config: AnyConfig, per_epoch: int) -> Task:
    """Networks, optimizer and programs on a mesh over all devices; `per_epoch` is the number of steps of an epoch."""
    return TokenizerTask(config, per_epoch) if isinstance(config, Config) else GeneratorTask(config, per_epoch)


def _start(task: Task, checkpoints: Checkpoints, iterator: Any) -> Any:
    latest = checkpoints.latest_step()
    if latest is None:
        return task.create()
    changed = check_same_run(checkpoints.meta(latest).config, task.config)
    if changed:
        logger.info("settings changed since the checkpoint: %s", ", ".join(changed))
    logger.info("continuing at step %d", latest)
    return checkpoints.restore(task.abstract, iterator)


def _write_config(workdir: Path, config: AnyConfig) -> None:
    if jax.process_index() == 0:
        with replacing(workdir / "config.yaml") as file:
            file.write(to_yaml(config).encode())


@jax.jit
def _accumulate(total: dict[str, clu_metrics.Average] | None, metrics: Metrics) -> dict[str, clu_metrics.Average]:
    new = {name: clu_metrics.Average.from_model_output(value) for name, value in metrics.items()}
    return new if total is None else {name: total[name].merge(average) for name, average in new.items()}


def _loop(task: Task, state: Any, iterator: Any, checkpoints: Checkpoints, workdir: Path) -> dict[str, float]:
    config, first = task.config, int(state.step)
    log = RunLog(
        workdir,
        total_steps=task.total_steps,
        first_step=first,
        images_per_step=config.training.batch_size,
        rates=task.rates,
        enabled=jax.process_index() == 0,
    )
    totals: Any = None
    metrics: Metrics = {}
    validated: dict[str, float] = {}
    in_flight: collections.deque[Metrics] = collections.deque()
    with log, StopRequest() as stop:
        for number in range(first + 1, task.total_steps + 1):
            batch = task.place(next(iterator))
            with jax.transfer_guard_device_to_host("disallow"):
                state, metrics = task.step(state, batch)
                totals = _accumulate(totals, metrics)
            in_flight.append(metrics)
            if len(in_flight) > STEPS_IN_FLIGHT:
                jax.block_until_ready(in_flight.popleft())
            log.advance()
            last = number == task.total_steps or stop.requested
            if number % config.training.log_every == 0 or last:
                require_finite(state, metrics)
                means = {name: float(average.compute()) for name, average in totals.items()}
                log.training(number, task.logged(means, number), task.shown)
                totals = None
            validated = {}
            if _validates(task, number, last and not stop.requested):
                require_finite(state, metrics)
                validated = task.validate(state, log, number)
            if number % config.checkpoint.every == 0 or last:
                require_finite(state, metrics)
                checkpoints.save(state, config, iterator, validated)
            if number % config.validation.every == 0 or number % config.checkpoint.every == 0:
                log.pause()
            if stop.requested:
                log.message(f"stopped at step {number}, checkpoint written: run the same command to continue")
                return {}
    if first >= task.total_steps:
        logger.info("the run is finished: step %d of %d is on disk", first, task.total_steps)
        return checkpoints.meta(first).metrics
    return validated


def _validates(task: Task, number: int, at_end: bool) -> bool:
    return task.validates and (at_end or number % task.config.validation.every == 0)


def require_finite(state: Any, metrics: Metrics) -> None:
    """Raise NonFiniteError, naming step and terms, if the state refused an update."""
    failure = int(state.failure)
    if failure:
        raise NonFiniteError(int(state.step) + 1, failed_terms(failure, metrics))
