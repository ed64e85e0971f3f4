"""PyTorch as a framework that runs: `train` and `replay` of `voken_common.training.run`, with tasks on one device."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Literal

import torch

from voken_common.checkpoints.steps import Progress
from voken_common.config.loading import AnyConfig
from voken_common.config.schema.tokenizer import Config
from voken_common.training import run
from voken_common.training.stop import AgreedStop
from voken_torch.checkpoints.torch import Checkpoints
from voken_torch.device.runtime import Runtime
from voken_torch.device.transfer import placing
from voken_torch.generator.task import GeneratorTask
from voken_torch.parallel.sharding import check_config, processes
from voken_torch.tokenizer.task import TokenizerTask
from voken_torch.training.inflate import inflate_state
from voken_torch.training.step_queue import Steps


class Framework:
    """Tasks, checkpoints and steps of PyTorch; see `voken_common.training.run.Framework`.

    Args:
        runtime: this process's device; the CPU by default.
    """

    name: Literal["jax", "torch"] = "torch"

    def __init__(self, runtime: Runtime | None = None) -> None:
        self._runtime = runtime or Runtime()
        self.processes, self.to_device = processes(self._runtime.device), placing(self._runtime.device)

    def build(self, config: AnyConfig, per_epoch: int, tokenizer: Path | None = None) -> TokenizerTask | GeneratorTask:
        """Build state, step and validation on this process's device."""
        return build(config, per_epoch, self._runtime, tokenizer)

    def begin(self, task: TokenizerTask | GeneratorTask) -> None:
        """Keep the state as it was built, with inflated weights where the configuration asks for them."""
        task.begin()
        if isinstance(task, TokenizerTask):
            inflate_state(task.config, task.state)

    def checkpoints(self, workdir: Path, config: Any) -> Checkpoints:
        """Open the steps of a work directory."""
        return Checkpoints(workdir, config)

    def steps(self, task: TokenizerTask | GeneratorTask, progress: Progress, workdir: Path) -> Steps:
        """Make the steps of a task."""
        return Steps(task, progress, workdir)

    def stop(self) -> AgreedStop:
        """Listen to signals."""
        return AgreedStop(self.processes)

    def trace(self, folder: Path) -> tuple[Callable[[], object], Callable[[], object]]:
        """Trace by PyTorch's profiler, a file per process."""
        trace = torch.profiler.profile(activities=torch.profiler.supported_activities())

        def end() -> None:
            trace.stop()
            trace.export_chrome_trace(str(folder / f"trace_{self.processes.index}.json"))

        return trace.start, end


def build(
    config: AnyConfig, per_epoch: int, runtime: Runtime, tokenizer: Path | None = None
) -> TokenizerTask | GeneratorTask:
    """Build state, step and validation on this process's device.

    Args:
        config: of a tokenizer or a generator.
        per_epoch: steps of one epoch.
        runtime: this process's device.
        tokenizer: of a generator, its checkpoint; None: where the configuration says.
    """
    if isinstance(config, Config):
        return TokenizerTask(config, per_epoch, runtime)
    return GeneratorTask(config, per_epoch, runtime, tokenizer)


def train(
    config: AnyConfig,
    workdir: Path,
    runtime: Runtime | None = None,
    profile: int = 0,
    allow: Collection[str] = (),
) -> dict[str, float]:
    """Train on this process's device; see `voken_common.training.run.train`.

    Every process of a distributed run calls it with its own runtime (`device.start`); the first one writes.
    """
    check_config(config)
    return run.train(config, workdir, Framework(runtime), profile, allow)


def replay(config: AnyConfig, workdir: Path, path: Path, runtime: Runtime | None = None) -> dict[str, float]:
    """Run one step on a batch that broke a step; see `voken_common.training.run.replay`."""
    return run.replay(config, workdir, path, Framework(runtime))
