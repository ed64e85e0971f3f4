"""The training loop of a tokenizer: input, step, logging, validation, checkpoints, resume and a clean stop."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from voken_common.checkpoints import check_same_run
from voken_common.config import to_yaml
from voken_common.files import replacing
from voken_common.run_log import SHOWN, RunLog, StopRequest
from voken_common.schedules import Schedule, build_schedule
from voken_common.schema import Config
from voken_common.validation import report
from voken_torch.checkpoint import Checkpoints
from voken_torch.device import Runtime
from voken_torch.perceptual import load_perceptual
from voken_torch.sharding import any_process, check_config, process_count, process_index, wait_for_all
from voken_torch.state import TrainState, create_state
from voken_torch.tokenizer_step import Metrics, TokenizerStep
from voken_torch.validation import Validator

logger = logging.getLogger("voken")


@dataclasses.dataclass(frozen=True)
class Setup:
    """Everything that is built once. The state's tensors change with every step."""

    config: Config
    runtime: Runtime
    schedule: Schedule
    total_steps: int
    state: TrainState
    step: TokenizerStep
    validator: Validator


def train(config: Config, workdir: Path, runtime: Runtime | None = None) -> dict[str, float]:
    """Train to the end of the configuration, from the newest checkpoint of `workdir` if there is one.

    Every process of a distributed run calls it with its own runtime (`device.start`); the first one writes.

    Returns:
        The metrics of the last validation; empty where there is no validation source or the run was stopped.

    Raises:
        ValueError: settings, data or a checkpoint that cannot be used.
        NonFiniteError: the run diverged; the state before the failing update is in the last checkpoint.
    """
    check_config(config)
    iterator = _open_data(config)
    try:
        setup = build(config, _steps_per_epoch(config, iterator), runtime or Runtime())
        checkpoints = Checkpoints(workdir, config.checkpoint)
        _resume(setup, checkpoints, iterator)
        _write_config(workdir, config)
        return _loop(setup, iterator, checkpoints, workdir)
    finally:
        iterator.close()


def build(config: Config, per_epoch: int, runtime: Runtime) -> Setup:
    """State, step and validator on this process's device."""
    total = config.training.steps or (config.training.epochs or 0) * per_epoch
    schedule = build_schedule(config, per_epoch, total)
    perceptual = load_perceptual(config, runtime)
    if perceptual is None:
        _tell("perceptual.weights is none: training WITHOUT perceptual loss (and validation without LPIPS)")
    state = create_state(config, runtime)
    step = TokenizerStep(config, state, schedule, runtime, perceptual)
    _tell(
        "%s: %s parameters (discriminator %s), %d steps, %d process(es) on %s",
        config.name,
        f"{_size(state.generator):,}",
        f"{_size(state.discriminator):,}",
        total,
        process_count(),
        runtime.device,
    )
    return Setup(config, runtime, schedule, total, state, step, Validator(config, state, runtime, perceptual))


def _open_data(config: Config) -> Any:
    # Imported late: Grain loads JAX where JAX is installed.
    from voken_common.data.pipeline import build_train_iterator
    from voken_common.data.sources import build_source

    source = build_source(config.data.train)
    _tell("training on %s", source.describe())
    if config.data.validation is None:
        _tell("data.validation is not set: no validation, no pictures")
    return build_train_iterator(
        config.data,
        batch_size_per_process=config.training.batch_size // process_count(),
        seed=config.seed,
        process_index=process_index(),
        process_count=process_count(),
        source=source,
    )


def _steps_per_epoch(config: Config, iterator: Any) -> int:
    from voken_common.data.pipeline import steps_per_epoch

    return steps_per_epoch(config.data, config.training.batch_size, source=iterator.source)


def _resume(setup: Setup, checkpoints: Checkpoints, iterator: Any) -> None:
    latest = checkpoints.latest_step()
    # No process may write before all have looked.
    wait_for_all()
    if latest is None:
        return
    changed = check_same_run(checkpoints.meta(latest).config, setup.config)
    if changed:
        _tell("settings changed since the checkpoint: %s", ", ".join(changed))
    _tell("continuing at step %d", latest)
    checkpoints.restore(setup.state, iterator)


def _write_config(workdir: Path, config: Config) -> None:
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


def _loop(setup: Setup, iterator: Any, checkpoints: Checkpoints, workdir: Path) -> dict[str, float]:
    config, state, first = setup.config, setup.state, setup.state.step
    log = RunLog(
        workdir,
        total_steps=setup.total_steps,
        first_step=first,
        images_per_step=config.training.batch_size,
        enabled=process_index() == 0,
    )
    totals = _Totals()
    validated: dict[str, float] = {}
    with log, StopRequest() as stop:
        for number in range(first + 1, setup.total_steps + 1):
            images = torch.from_numpy(next(iterator)["image"]).movedim(-1, 1).contiguous()
            totals.add(setup.step(state, images))
            log.advance()
            stopping = any_process(stop.requested, setup.runtime.device)
            last = number == setup.total_steps or stopping
            if number % config.training.log_every == 0 or last:
                rate = config.optimizer.learning_rate * float(setup.schedule(number - 1))
                log.training(number, {**totals.means(), "learning_rate": rate}, SHOWN)
            validated = {}
            if _validates(config, number, last and not stopping):
                validated = _validate(setup, log, number)
            if number % config.checkpoint.every == 0 or last:
                checkpoints.save(state, config, iterator, validated)
            if number % config.validation.every == 0 or number % config.checkpoint.every == 0:
                log.pause()
            if stopping:
                log.message(f"stopped at step {number}, checkpoint written: run the same command to continue")
                return {}
    if first >= setup.total_steps:
        _tell("the run is finished: step %d of %d is on disk", first, setup.total_steps)
        return checkpoints.meta(first).metrics
    return validated


def _validates(config: Config, number: int, at_end: bool) -> bool:
    return config.data.validation is not None and (at_end or number % config.validation.every == 0)


def _validate(setup: Setup, log: RunLog, number: int) -> dict[str, float]:
    from voken_common.data.pipeline import build_validation_batches

    config = setup.config
    batches = build_validation_batches(
        config.data,
        batch_size=config.validation.batch_size // process_count(),
        process_index=process_index(),
        process_count=process_count(),
        max_images=config.validation.max_images,
    )
    result = setup.validator(batches)
    report(log, number, result, batches.num_images)
    return result.metrics


def _tell(message: str, *values: object) -> None:
    if process_index() == 0:
        logger.info(message, *values)


def _size(weights: dict[str, Tensor]) -> int:
    return sum(weight.numel() for weight in weights.values())
