"""The optimizer steps of a run, their mean metrics, and what happens when one is refused."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch

from voken_common.checkpoints.steps import Progress
from voken_common.errors import NonFiniteError
from voken_common.training.collapse import CodeUse
from voken_common.training.health import SKIPPED, save_failed_batch
from voken_torch.generator.task import GeneratorTask
from voken_torch.optimization.finite import Metrics
from voken_torch.parallel.sharding import process_count, process_index
from voken_torch.tokenizer.task import TokenizerTask

logger = logging.getLogger("voken")


class Steps:
    """The optimizer steps of a run.

    Args:
        task: what is trained.
        progress: what the checkpoint says besides the state.
        workdir: where batches of refused steps are kept.

    Attributes:
        number: steps taken, counted from the beginning of the run.
    """

    def __init__(self, task: TokenizerTask | GeneratorTask, progress: Progress, workdir: Path):
        self.number: int = task.state.step
        self._task, self._workdir, self._skipped = task, workdir, progress.skipped
        device = task.runtime.device
        self._sums: Metrics = {
            name: torch.tensor(total, dtype=getattr(torch, kind), device=device)
            for name, (total, _, kind) in progress.averages.items()
        }
        self._count = max((count for _, count, _ in progress.averages.values()), default=0)

    def step(self, batch: dict[str, np.ndarray]) -> None:
        """Make one step, or skip a batch that is not finite.

        Raises:
            NonFiniteError: no more may be skipped.
        """
        try:
            metrics = self._task.step(batch)
        except NonFiniteError as error:
            self._skip(error, batch)
            return
        self._sums = {name: value + self._sums.get(name, 0.0) for name, value in metrics.items()}
        self._count += 1
        self.number += 1

    def settle(self) -> bool:
        """Nothing is ever under way, so nothing is found out later."""
        return False

    def means(self) -> dict[str, float]:
        """Means of the metrics since the last call."""
        if not self._count:
            return {}
        values = torch.stack(list(self._sums.values())).div(self._count).tolist()
        means = dict(zip(self._sums, values, strict=True))
        self._sums, self._count = {}, 0
        return means

    def code_use(self) -> CodeUse | None:
        """Codes used since the last call, or since this process began; None: no codebook."""
        return None if self._task.seen_codes is None else self._task.seen_codes.take()

    def progress(self) -> Progress:
        """Return the progress that a checkpoint holds besides the state."""
        sums = self._sums.items()
        kinds = {name: str(value.dtype).removeprefix("torch.") for name, value in sums}
        return Progress({name: (float(value), self._count, kinds[name]) for name, value in sums}, self._skipped)

    def _skip(self, error: NonFiniteError, batch: dict[str, np.ndarray]) -> None:
        allowed = self._task.config.health.max_skipped
        path = save_failed_batch(self._workdir, error.step, batch, error.terms, (process_index(), process_count()))
        if self._skipped >= allowed:
            raise NonFiniteError(error.step, error.terms, batch=path, skipped=self._skipped) from error
        self._skipped += 1
        if process_index() == 0:
            logger.warning(SKIPPED, error.step, ", ".join(error.terms), self._skipped, allowed, path)
