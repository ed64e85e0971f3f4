"""The training loop of a tokenizer: input, step, logging, validation, checkpoints, resume and a clean stop."""

from __future__ import annotations

import collections
import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
from clu import metrics as clu_metrics
from jax.sharding import Mesh

from voken_common.checkpoints import check_same_run
from voken_common.config import to_yaml
from voken_common.data.pipeline import TrainIterator, build_train_iterator, build_validation_batches, steps_per_epoch
from voken_common.data.sources import build_source
from voken_common.errors import NonFiniteError
from voken_common.files import replacing
from voken_common.run_log import SHOWN, RunLog, StopRequest
from voken_common.schedules import Schedule, build_schedule
from voken_common.schema import Config
from voken_common.validation import report
from voken_jax.checkpoint import Checkpoints
from voken_jax.optim import build_optimizer
from voken_jax.perceptual import load_perceptual
from voken_jax.sharding import batch_sharding, check_batch, make_mesh
from voken_jax.state import Players, TrainState, abstract_state, build_players, create_state
from voken_jax.tokenizer_step import Metrics, TokenizerStep, failed_terms
from voken_jax.validation import Validator

logger = logging.getLogger("voken")

STEPS_IN_FLIGHT = 2


@dataclasses.dataclass(frozen=True)
class Setup:
    """Everything that is built once."""

    config: Config
    mesh: Mesh
    players: Players
    schedule: Schedule
    total_steps: int
    abstract: TrainState
    step: TokenizerStep
    validator: Validator
    optimizer: Any


def train(config: Config, workdir: Path) -> dict[str, float]:
    """Train to the end of the configuration, from the newest checkpoint of `workdir` if there is one.

    Returns:
        The metrics of the last validation; empty where there is no validation source or the run was stopped.

    Raises:
        ValueError: settings, data or a checkpoint that cannot be used.
        NonFiniteError: the run diverged; the state before the failing update is in the last checkpoint.
    """
    iterator = _open_data(config)
    setup = build(config, steps_per_epoch(config.data, config.training.batch_size, source=iterator.source))
    checkpoints = Checkpoints(workdir, config.checkpoint)
    try:
        state = _start(setup, checkpoints, iterator)
        _write_config(workdir, config)
        return _loop(setup, state, iterator, checkpoints, workdir)
    finally:
        iterator.close()
        checkpoints.close()


def build(config: Config, per_epoch: int) -> Setup:
    """Networks, optimizer, step and validator on a mesh over all devices."""
    mesh = make_mesh(config.mesh)
    check_batch(config, mesh)
    total = config.training.steps or (config.training.epochs or 0) * per_epoch
    schedule = build_schedule(config, per_epoch, total)
    players, optimizer = build_players(config), build_optimizer(config.optimizer, schedule)
    perceptual = load_perceptual(config)
    if perceptual is None:
        logger.info("perceptual.weights is none: training WITHOUT perceptual loss (and validation without LPIPS)")
    abstract = abstract_state(config, players, optimizer, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    step = TokenizerStep(config, players, optimizer, mesh, shardings, perceptual)
    validator = Validator(config, players.autoencoder, mesh, perceptual)
    logger.info(
        "%s: %s parameters (discriminator %s), %d steps, %d device(s): %s",
        config.name,
        f"{_size(players.autoencoder.parameters):,}",
        f"{_size(players.discriminator.parameters):,}",
        total,
        mesh.size,
        jax.devices()[0].device_kind,
    )
    return Setup(config, mesh, players, schedule, total, abstract, step, validator, optimizer)


def _open_data(config: Config) -> TrainIterator:
    source = build_source(config.data.train)
    logger.info("training on %s", source.describe())
    if config.data.validation is None:
        logger.info("data.validation is not set: no validation, no pictures")
    return build_train_iterator(
        config.data,
        batch_size_per_process=config.training.batch_size // jax.process_count(),
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        source=source,
    )


def _start(setup: Setup, checkpoints: Checkpoints, iterator: TrainIterator) -> TrainState:
    latest = checkpoints.latest_step()
    if latest is None:
        return create_state(setup.config, setup.players, setup.optimizer, setup.mesh)
    changed = check_same_run(checkpoints.meta(latest).config, setup.config)
    if changed:
        logger.info("settings changed since the checkpoint: %s", ", ".join(changed))
    logger.info("continuing at step %d", latest)
    return checkpoints.restore(setup.abstract, iterator)


def _write_config(workdir: Path, config: Config) -> None:
    if jax.process_index() == 0:
        with replacing(workdir / "config.yaml") as file:
            file.write(to_yaml(config).encode())


@jax.jit
def _accumulate(total: dict[str, clu_metrics.Average] | None, metrics: Metrics) -> dict[str, clu_metrics.Average]:
    new = {name: clu_metrics.Average.from_model_output(value) for name, value in metrics.items()}
    return new if total is None else {name: total[name].merge(average) for name, average in new.items()}


def _loop(
    setup: Setup, state: TrainState, iterator: TrainIterator, checkpoints: Checkpoints, workdir: Path
) -> dict[str, float]:
    config, first = setup.config, int(state.step)
    log = RunLog(
        workdir,
        total_steps=setup.total_steps,
        first_step=first,
        images_per_step=config.training.batch_size,
        enabled=jax.process_index() == 0,
    )
    totals: Any = None
    metrics: Metrics = {}
    validated: dict[str, float] = {}
    in_flight: collections.deque[Metrics] = collections.deque()
    with log, StopRequest() as stop:
        for number in range(first + 1, setup.total_steps + 1):
            images = jax.make_array_from_process_local_data(batch_sharding(setup.mesh), next(iterator)["image"])
            with jax.transfer_guard_device_to_host("disallow"):
                state, metrics = setup.step(state, images)
                totals = _accumulate(totals, metrics)
            in_flight.append(metrics)
            if len(in_flight) > STEPS_IN_FLIGHT:
                jax.block_until_ready(in_flight.popleft())
            log.advance()
            last = number == setup.total_steps or stop.requested
            if number % config.training.log_every == 0 or last:
                require_finite(state, metrics)
                log.training(number, _means(totals, setup, number), SHOWN)
                totals = None
            validated = {}
            if _validates(config, number, last and not stop.requested):
                require_finite(state, metrics)
                validated = _validate(setup, state, log, number)
            if number % config.checkpoint.every == 0 or last:
                require_finite(state, metrics)
                checkpoints.save(state, config, iterator, validated)
            if number % config.validation.every == 0 or number % config.checkpoint.every == 0:
                log.pause()
            if stop.requested:
                log.message(f"stopped at step {number}, checkpoint written: run the same command to continue")
                return {}
    if first >= setup.total_steps:
        logger.info("the run is finished: step %d of %d is on disk", first, setup.total_steps)
        return checkpoints.meta(first).metrics
    return validated


def _validates(config: Config, number: int, at_end: bool) -> bool:
    return config.data.validation is not None and (at_end or number % config.validation.every == 0)


def require_finite(state: TrainState, metrics: Metrics) -> None:
    """Raise NonFiniteError, naming step and terms, if the state refused an update."""
    failure = int(state.failure)
    if failure:
        raise NonFiniteError(int(state.step) + 1, failed_terms(failure, metrics))


def _means(totals: Any, setup: Setup, number: int) -> dict[str, float]:
    means = {name: float(average.compute()) for name, average in totals.items()}
    rate = setup.config.optimizer.learning_rate * float(setup.schedule(number - 1))
    return {**means, "learning_rate": rate}


def _validate(setup: Setup, state: TrainState, log: RunLog, number: int) -> dict[str, float]:
    config = setup.config
    batches = build_validation_batches(
        config.data,
        batch_size=config.validation.batch_size // jax.process_count(),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        max_images=config.validation.max_images,
    )
    result = setup.validator(state.generator_ema, batches)
    report(log, number, result, batches.num_images)
    return result.metrics


def _size(weights: dict[str, Any]) -> int:
    return sum(int(np.prod(w.shape)) for w in weights.values())
