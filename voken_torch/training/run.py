"""The training loop of tokenizers and generators: step, logging, validation, checkpoints, resume and a clean stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from voken_common.atomic_write import replacing
from voken_common.checkpoints.frozen_tokenizer import tokenizer_of_run
from voken_common.checkpoints.lock import held
from voken_common.checkpoints.steps import Progress, check_same_run, require_framework
from voken_common.config.loading import AnyConfig, to_yaml
from voken_common.config.tokenizer import Config
from voken_common.training.log import StopRequest
from voken_common.training.loop import Hooks, RunLoop
from voken_common.training.profiling import FOLDER, Profiler
from voken_torch.checkpoints.torch import Checkpoints
from voken_torch.device.runtime import Runtime
from voken_torch.device.transfer import placing
from voken_torch.generator.task import GeneratorTask, open_tokens
from voken_torch.parallel.sharding import any_process, check_config, process_count, process_index, wait_for_all
from voken_torch.parallel.task import Task, tell
from voken_torch.tokenizer.task import TokenizerTask, open_images
from voken_torch.training.inflate import inflate_state
from voken_torch.training.step_queue import Steps


def train(config: AnyConfig, workdir: Path, runtime: Runtime | None = None, profile: int = 0) -> dict[str, float]:
    """Train to the end of the configuration, from the newest good checkpoint of `workdir` if there is one.

    Every process of a distributed run calls it with its own runtime (`device.start`); the first one writes.

    Args:
        config: of a tokenizer or a generator.
        workdir: where everything is written; no other run may use it meanwhile.
        runtime: this process's device; the CPU by default.
        profile: trace this many steps.

    Returns:
        The metrics of the last validation; empty where there is no validation source or the run was stopped.

    Raises:
        ValueError: settings, data, a checkpoint or a work directory that cannot be used.
        NonFiniteError: the run diverged; the state before the failing update is in the last checkpoint.
    """
    check_config(config)
    require_framework(workdir, "torch")
    iterator = open_data(config)
    try:
        runtime = runtime or Runtime()
        iterator.place = placing(runtime.device)
        per_epoch = -(-len(iterator.source) // config.training.batch_size)
        task = build(config, per_epoch, runtime, tokenizer_of_run(config, workdir))
        with held(workdir, process_index() == 0, lambda flag: any_process(flag, runtime.device)):
            checkpoints = Checkpoints(workdir, config.checkpoint)
            progress = _resume(task, checkpoints, iterator)
            _write_config(workdir, task.config)
            return _run(task, Steps(task, progress, workdir), iterator, checkpoints, workdir, profile)
    finally:
        iterator.close()


def open_data(config: AnyConfig) -> Any:
    """The training data of a run, as an iterator that remembers its `source`."""
    return open_images(config) if isinstance(config, Config) else open_tokens(config)


def build(config: AnyConfig, per_epoch: int, runtime: Runtime, tokenizer: Path | None = None) -> Task:
    """State, step and validation on this process's device.

    Args:
        config: of a tokenizer or a generator.
        per_epoch: steps of one epoch.
        runtime: this process's device.
        tokenizer: of a generator, its checkpoint; None: where the configuration says.
    """
    if isinstance(config, Config):
        return TokenizerTask(config, per_epoch, runtime)
    return GeneratorTask(config, per_epoch, runtime, tokenizer)


def _resume(task: Task, checkpoints: Checkpoints, iterator: Any) -> Progress:
    latest = checkpoints.recover()
    # No process may write before all have looked.
    wait_for_all()
    if latest is None:
        if isinstance(task.config, Config):
            inflate_state(task.config, task.state)
        return Progress()
    meta = checkpoints.meta(latest)
    changed = check_same_run(meta.config, task.config)
    if changed:
        tell("settings changed since the checkpoint: %s", ", ".join(changed))
    tell("continuing at step %d", latest)
    checkpoints.restore(task.state, iterator)
    return meta.progress


def _write_config(workdir: Path, config: AnyConfig) -> None:
    if process_index() == 0:
        with replacing(workdir / "config.yaml") as file:
            file.write(to_yaml(config).encode())


def _run(
    task: Task, steps: Steps, iterator: Any, checkpoints: Checkpoints, workdir: Path, profile: int
) -> dict[str, float]:
    first = steps.number
    trace = torch.profiler.profile(activities=torch.profiler.supported_activities())

    def end_trace() -> None:
        trace.stop()
        trace.export_chrome_trace(str(workdir / FOLDER / f"trace_{process_index()}.json"))

    with StopRequest() as stop:
        hooks = Hooks(
            validate=task.validate,
            save=lambda metrics, progress: checkpoints.save(task.state, task.config, iterator, metrics, progress),
            stops=lambda _: any_process(stop.requested, task.runtime.device),
            profiler=Profiler(workdir / FOLDER, profile, trace.start, end_trace),
            first_process=process_index() == 0,
            alone=process_count() == 1,
        )
        validated = RunLoop(task, steps, iterator, workdir, hooks).to_the_end()
    if first >= task.total_steps:
        tell("the run is finished: step %d of %d is on disk", first, task.total_steps)
        return checkpoints.meta(first).metrics
    return validated or {}
