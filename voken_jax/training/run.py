"""JAX as a framework that runs: `train` and `replay` of `voken_common.training.run`, with tasks on a mesh."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Literal

import jax

from voken_common.checkpoints.steps import Progress
from voken_common.config.loading import AnyConfig
from voken_common.config.schema.tokenizer import Config
from voken_common.training import run
from voken_common.training.stop import AgreedStop
from voken_jax.checkpoints.orbax import Checkpoints
from voken_jax.generator.task import GeneratorTask
from voken_jax.parallel.distributed import processes
from voken_jax.tokenizer.task import TokenizerTask
from voken_jax.training.inflate import inflated_state
from voken_jax.training.step_queue import Steps
from voken_jax.training.stop import PreemptionStop


class Framework:
    """Tasks, checkpoints and steps of JAX; see `voken_common.training.run.Framework`."""

    name: Literal["jax", "torch"] = "jax"
    to_device: Callable[[Any], Any] | None = None

    def __init__(self) -> None:
        self.processes = processes()

    def build(self, config: AnyConfig, per_epoch: int, tokenizer: Path | None = None) -> TokenizerTask | GeneratorTask:
        """Build networks, optimizer and programs on a mesh over all devices."""
        return build(config, per_epoch, tokenizer)

    def begin(self, task: TokenizerTask | GeneratorTask) -> None:
        """Create a fresh state, with inflated weights where the configuration asks for them."""
        task.begin()
        if isinstance(task, TokenizerTask):
            task.state = inflated_state(task.config, task.state)

    def checkpoints(self, workdir: Path, config: Any) -> Checkpoints:
        """Open the steps of a work directory."""
        return Checkpoints(workdir, config)

    def steps(self, task: TokenizerTask | GeneratorTask, progress: Progress, workdir: Path) -> Steps:
        """Queue the steps of a task."""
        return Steps(task, progress, workdir)

    def stop(self) -> AgreedStop:
        """Listen to signals."""
        return AgreedStop(self.processes) if self.processes.alone else PreemptionStop(self.processes)

    def trace(self, folder: Path) -> tuple[Callable[[], object], Callable[[], object]]:
        """Trace by JAX's profiler."""

        def end() -> None:
            jax.effects_barrier()
            jax.profiler.stop_trace()

        return functools.partial(jax.profiler.start_trace, str(folder)), end


def build(config: AnyConfig, per_epoch: int, tokenizer: Path | None = None) -> TokenizerTask | GeneratorTask:
    """Build networks, optimizer and programs on a mesh over all devices.

    Args:
        config: of a tokenizer or a generator.
        per_epoch: steps of one epoch.
        tokenizer: of a generator, its checkpoint; None: where the configuration says.
    """
    if isinstance(config, Config):
        return TokenizerTask(config, per_epoch)
    return GeneratorTask(config, per_epoch, tokenizer)


def train(config: AnyConfig, workdir: Path, profile: int = 0, allow: Collection[str] = ()) -> dict[str, float]:
    """Train on all devices; see `voken_common.training.run.train`."""
    return run.train(config, workdir, Framework(), profile, allow)


def replay(config: AnyConfig, workdir: Path, path: Path) -> dict[str, float]:
    """Run one step on a batch that broke a step; see `voken_common.training.run.replay`."""
    return run.replay(config, workdir, path, Framework())
