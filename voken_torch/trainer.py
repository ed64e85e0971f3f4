"""The training loop of tokenizers and generators: step, logging, validation, checkpoints, resume and a clean stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from voken_common.checkpoints import check_same_run
from voken_common.config import AnyConfig, to_yaml
from voken_common.files import replacing
from voken_common.run_log import RunLog, StopRequest
from voken_common.schema import Config
from voken_torch.checkpoint import Checkpoints
from voken_torch.device import Runtime
from voken_torch.generator_task import GeneratorTask, open_tokens
from voken_torch.sharding import any_process, check_config, process_index, wait_for_all
from voken_torch.task import Metrics, Task, tell
from voken_torch.tokenizer_task import TokenizerTask, open_images


def train(config: AnyConfig, workdir: Path, runtime: Runtime | None = None) -> dict[str, float]:
    """Train to the end of the configuration, from the newest checkpoint of `workdir` if there is one.

    Every process of a distributed run calls it with its own runtime (`device.start`); the first one writes.

    Returns:
        The metrics of the last validation; empty where there is no validation source or the run was stopped.

    Raises:
        ValueError: settings, data or a checkpoint that cannot be used.
        NonFiniteError: the run diverged; the state before the failing update is in the last checkpoint.
    """
    check_config(config)
    iterator = open_data(config)
    try:
        task = build(config, -(-len(iterator.source) // config.training.batch_size), runtime or Runtime())
        checkpoints = Checkpoints(workdir, config.checkpoint)
        _resume(task, checkpoints, iterator)
        _write_config(workdir, config)
        return _loop(task, iterator, checkpoints, workdir)
    finally:
        iterator.close()


def open_data(config: AnyConfig) -> Any:
    """The training data of a run, as an iterator that remembers its `source`."""
    return open_images(config) if isinstance(config, Config) else open_tokens(config)


def build(config: AnyConfig, per_epoch: int, runtime: Runtime) -> Task:
    """State, step and validation on this process's device; `per_epoch` is the number of steps of an epoch."""
    if isinstance(config, Config):
        return TokenizerTask(config, per_epoch, runtime)
    return GeneratorTask(config, per_epoch, runtime)


def _resume(task: Task, checkpoints: Checkpoints, iterator: Any) -> None:
    latest = checkpoints.latest_step()
    # No process may write before all have looked.
    wait_for_all()
    if latest is None:
        return
    changed = check_same_run(checkpoints.meta(latest).config, task.config)
    if changed:
        tell("settings changed since the checkpoint: %s", ", ".join(changed))
    tell("continuing at step %d", latest)
    checkpoints.restore(task.state, iterator)


def _write_config(workdir: Path, config: AnyConfig) -> None:
    if process_index() == 0:
        with replacing(workdir / "config.yaml") as file:
            file.write(to_yaml(config).encode())


class _Totals:
    """Sums of metrics between two logged steps; they stay on the device until they are read."""

    def __init__(self) -> None:
        self._sums: Metrics = {}
        self._count = 0

    def add(self, metrics: Metrics) -> None:
        """Take the metrics of one step."""
        self._sums = {name: value + self._sums.get(name, 0.0) for name, value in metrics.items()}
        self._count += 1

    def means(self) -> dict[str, float]:
        """Means since the last call."""
        values = torch.stack(list(self._sums.values())).div(self._count).tolist()
        means = dict(zip(self._sums, values, strict=True))
        self._sums, self._count = {}, 0
        return means


def _loop(task: Task, iterator: Any, checkpoints: Checkpoints, workdir: Path) -> dict[str, float]:
    config, state, first = task.config, task.state, task.state.step
    log = RunLog(
        workdir,
        total_steps=task.total_steps,
        first_step=first,
        images_per_step=config.training.batch_size,
        rates=task.rates,
        enabled=process_index() == 0,
    )
    totals = _Totals()
    validated: dict[str, float] = {}
    with log, StopRequest() as stop:
        for number in range(first + 1, task.total_steps + 1):
            totals.add(task.step(next(iterator)))
            log.advance()
            stopping = any_process(stop.requested, task.runtime.device)
            last = number == task.total_steps or stopping
            if number % config.training.log_every == 0 or last:
                log.training(number, task.logged(totals.means(), number), task.shown)
            validated = {}
            if _validates(task, number, last and not stopping):
                validated = task.validate(log, number)
            if number % config.checkpoint.every == 0 or last:
                checkpoints.save(state, config, iterator, validated)
            if number % config.validation.every == 0 or number % config.checkpoint.every == 0:
                log.pause()
            if stopping:
                log.message(f"stopped at step {number}, checkpoint written: run the same command to continue")
                return {}
    if first >= task.total_steps:
        tell("the run is finished: step %d of %d is on disk", first, task.total_steps)
        return checkpoints.meta(first).metrics
    return validated


def _validates(task: Task, number: int, at_end: bool) -> bool:
    return task.validates and (at_end or number % task.config.validation.every == 0)
