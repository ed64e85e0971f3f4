"""A run from its configuration to its last step, the same in both frameworks: data, task, checkpoints, loop."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Literal, Protocol

from voken_common.atomic_write import replacing
from voken_common.checkpoints.frozen_tokenizer import tokenizer_of_run
from voken_common.checkpoints.lock import held
from voken_common.checkpoints.steps import Meta, Progress, check_same_run, require_framework
from voken_common.config.loading import AnyConfig, to_yaml
from voken_common.config.schedules import steps_per_epoch
from voken_common.errors import CheckpointError
from voken_common.processes import Processes
from voken_common.training.data import open_data
from voken_common.training.health import check_replayed, describe_replay, load_failed_batch
from voken_common.training.loop import RunLoop, Steps
from voken_common.training.profiling import FOLDER, Profiler
from voken_common.training.stop import AgreedStop
from voken_common.training.task import Task


class Checkpoints(Protocol):
    """The steps kept in one work directory; see `voken_jax.checkpoints.orbax` and `voken_torch.checkpoints.torch`."""

    def latest_step(self) -> int | None:
        """Return the newest step on disk that is not damaged, or None."""

    def recover(self) -> int | None:
        """Return the same for the run that holds the directory, and move half-written and damaged steps away."""

    def meta(self, step: int) -> Meta:
        """Return what a step on disk says about itself."""

    def save(
        self, state: Any, config: Any, iterator: Any, metrics: dict[str, float], progress: Progress | None = None
    ) -> None:
        """Write the current step."""

    def restore(self, target: Any, iterator: Any) -> Any:
        """Return the newest step on `target`, and move the iterator to its position."""

    def close(self) -> None:
        """Wait for writes under way."""


class Framework(Protocol):
    """The parts of a run that a framework brings.

    Attributes:
        name: as checkpoints know it.
        processes: those that train together.
        to_device: applied to each batch in the thread that reads ahead; None: batches stay as they are.
    """

    name: Literal["jax", "torch"]
    processes: Processes
    to_device: Callable[[Any], Any] | None

    def build(self, config: AnyConfig, per_epoch: int, tokenizer: Path | None = None) -> Task:
        """Build a task from a configuration, the steps of one epoch, and a generator's tokenizer."""

    def begin(self, task: Any) -> None:
        """Give a task the state that its configuration begins with."""

    def checkpoints(self, workdir: Path, config: Any) -> Checkpoints:
        """Open the steps of a work directory by the `checkpoint` section."""

    def steps(self, task: Any, progress: Progress, workdir: Path) -> Steps:
        """Return the optimizer steps of a task, which go on with the progress of its checkpoint."""

    def stop(self) -> AgreedStop:
        """Return a new listener to signals."""

    def trace(self, folder: Path) -> tuple[Callable[[], object], Callable[[], object]]:
        """Return functions that begin and end a trace in a folder."""


def train(
    config: AnyConfig, workdir: Path, framework: Framework, profile: int = 0, allow: Collection[str] = ()
) -> dict[str, float]:
    """Train to the end of the configuration, from the newest good checkpoint of `workdir` if there is one.

    Args:
        config: of a tokenizer or a generator.
        workdir: where everything is written; no other run may use it meanwhile.
        framework: what trains.
        profile: trace this many steps.
        allow: `data`: continue on other data than the checkpoint's, in an order that begins anew.

    Returns:
        The metrics of the last validation; empty where there is no validation source or the run was stopped.

    Raises:
        ValueError: settings, data, a checkpoint or a work directory that cannot be used.
        NonFiniteError: the run diverged; the state before the failing update is in the last checkpoint.
    """
    processes = framework.processes
    require_framework(workdir, framework.name)
    with contextlib.ExitStack() as stack:
        iterator = open_data(config, processes)
        stack.callback(iterator.close)
        iterator.allow_changed_data = "data" in allow
        if framework.to_device is not None:
            iterator.place = framework.to_device
        task = framework.build(config, _per_epoch(config, iterator), tokenizer_of_run(config, workdir))
        stack.enter_context(held(workdir, processes))
        checkpoints = framework.checkpoints(workdir, config.checkpoint)
        stack.callback(checkpoints.close)
        steps = framework.steps(task, _resume(task, checkpoints, iterator, framework), workdir)
        if processes.first:
            with replacing(workdir / "config.yaml") as file:
                file.write(to_yaml(task.config).encode())
        first, folder = steps.number, workdir / FOLDER
        profiler = Profiler(folder, profile, *framework.trace(folder))
        with framework.stop() as stop:
            validated = RunLoop(task, steps, iterator, workdir, checkpoints, processes, stop, profiler).to_the_end()
        if first >= task.total_steps:
            processes.tell("the run is finished: step %d of %d is on disk", first, task.total_steps)
            return checkpoints.meta(first).metrics
        return validated or {}


def replay(config: AnyConfig, workdir: Path, path: Path, framework: Framework) -> dict[str, float]:
    """Run one step on a batch that broke a step, from the newest checkpoint, and print its terms; nothing is written.

    Args:
        config: of the run.
        workdir: its work directory.
        path: a `failed_batch_<step>.npz`.
        framework: what trained.

    Returns:
        The metrics of the step; where it is refused again, at least those that are not finite.

    Raises:
        CheckpointError: no such batch, or no good checkpoint to replay it on.
    """
    step, batch, terms = load_failed_batch(path)
    check_replayed(path, batch, config.training.batch_size)
    with contextlib.ExitStack() as stack:
        iterator = open_data(config, framework.processes)
        stack.callback(iterator.close)
        task = framework.build(config, _per_epoch(config, iterator), tokenizer_of_run(config, workdir))
        checkpoints = framework.checkpoints(workdir, config.checkpoint)
        stack.callback(checkpoints.close)
        latest = checkpoints.latest_step()
        if latest is None:
            raise CheckpointError(f"{workdir} holds no checkpoint, on whose weights {path} could be replayed")
        task.resume(checkpoints.restore(task.target(), iterator))
    metrics = task.metrics_of(batch)
    print(describe_replay(path, step, terms, latest, metrics))
    return metrics


def _per_epoch(config: AnyConfig, iterator: Any) -> int:
    return steps_per_epoch(config, len(iterator.source))


def _resume(task: Task, checkpoints: Checkpoints, iterator: Any, framework: Framework) -> Progress:
    processes = framework.processes
    latest = checkpoints.recover()
    # No process may write before all have looked.
    processes.any(False)
    if latest is None:
        framework.begin(task)
        return Progress()
    meta = checkpoints.meta(latest)
    changed = check_same_run(meta.config, task.config)
    if changed:
        processes.tell("settings changed since the checkpoint: %s", ", ".join(changed))
    processes.tell("continuing at step %d", latest)
    task.resume(checkpoints.restore(task.target(), iterator))
    return meta.progress
