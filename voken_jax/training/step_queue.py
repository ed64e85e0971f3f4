"""Steps that run a little ahead of what is known about them, their mean metrics, and what happens when one is refused.

A step whose loss or gradient is not finite leaves the state as it was, and the state then stays so
(`keep_if_finite`), which the host learns some steps later. The batches since are kept until it has: a refused one is
saved and skipped, and those after it are run again. So what is computed does not depend on how far ahead the host was.
"""

from __future__ import annotations

import collections
import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics as clu_metrics
from jax.sharding import Mesh

from voken_common.checkpoints.steps import Progress
from voken_common.errors import NonFiniteError
from voken_common.training.collapse import CodeUse
from voken_common.training.health import SKIPPED, save_failed_batch
from voken_jax.generator.task import GeneratorTask
from voken_jax.optimization.codebook_usage import SeenCodes, distinct, nothing_seen, see
from voken_jax.optimization.finite import Metrics, failed_terms
from voken_jax.parallel.distributed import processes
from voken_jax.tokenizer.task import TokenizerTask

logger = logging.getLogger("voken")

AHEAD = 2
"""Steps that may be under way while the next one is started."""

Batch = dict[str, np.ndarray]
Averages = dict[str, clu_metrics.Average]


class _Flight(NamedTuple):
    """A step that was started: its batch on the host, its metrics, and the failure bits of the state after it."""

    batch: Batch
    metrics: Metrics
    failure: jax.Array


class _Totals(NamedTuple):
    """Totals over the steps between two logged ones; None: nothing so far, or no codebook."""

    averages: Averages | None
    codes: SeenCodes | None


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _accumulate(
    mesh: Mesh, total: _Totals, metrics: Metrics, ids: jax.Array | None, failure: jax.Array
) -> tuple[_Totals, jax.Array]:
    good = failure == 0
    new = {
        name: clu_metrics.Average(total=jnp.where(good, value, 0), count=good.astype(jnp.int32))
        for name, value in metrics.items()
    }
    if total.averages is not None:
        new = {name: total.averages[name].merge(average) for name, average in new.items()}
    codes = total.codes if ids is None or total.codes is None else see(mesh, total.codes, ids, good)
    return _Totals(new, codes), jnp.copy(failure)


class Steps:
    """The optimizer steps of a run.

    Args:
        task: what is trained; its state is consumed and replaced by every step.
        progress: what the checkpoint says besides.
        workdir: where batches of refused steps are kept.

    Attributes:
        number: of the steps started so far, counted from the beginning of the run; less after `settle` where one was
            refused.
    """

    def __init__(self, task: TokenizerTask | GeneratorTask, progress: Progress, workdir: Path):
        self.number = int(task.state.step)
        self._task, self._workdir, self._skipped = task, workdir, progress.skipped
        self._flights: collections.deque[_Flight] = collections.deque()
        self._totals = _Totals(_restored(progress.averages), self._no_codes())
        self._tokens = 0

    def step(self, batch: Batch, ahead: int | None = AHEAD) -> None:
        """Start one step on a batch, and wait until no more than `ahead` are under way; None: wait for none.

        Raises:
            NonFiniteError: one of those before was refused, and no more may be skipped.
        """
        with jax.transfer_guard_device_to_host("disallow"):
            metrics, ids = self._task.step(batch)
            self._totals, failure = _accumulate(self._task.mesh, self._totals, metrics, ids, self._task.state.failure)
        self._tokens = 0 if ids is None else ids.size
        self._flights.append(_Flight(batch, metrics, failure))
        self.number += 1
        if ahead is not None:
            self._settle(ahead)

    def settle(self) -> bool:
        """Wait for all steps; whether any was refused, so that `number` is less than it was.

        Raises:
            NonFiniteError: as `step`.
        """
        return self._settle(0)

    def means(self) -> dict[str, float]:
        """Means of the metrics since the last call; only after `settle`."""
        means = {name: float(average.compute()) for name, average in (self._totals.averages or {}).items()}
        self._totals = self._totals._replace(averages=None)
        return means

    def code_use(self) -> CodeUse | None:
        """Codes used since the last call, or since this process began; only after `settle`. None: no codebook."""
        seen = self._totals.codes
        if seen is None:
            return None
        codes = seen.flags.shape[1]
        use = CodeUse(int(distinct(seen.flags)), codes, int(seen.steps) * self._tokens)
        self._totals = self._totals._replace(codes=self._no_codes())
        return use

    def progress(self) -> Progress:
        """Return the progress that a checkpoint holds besides the state; only after `settle`."""
        totals = jax.device_get(self._totals.averages or {})
        averages = {name: (float(a.total), int(a.count), str(a.total.dtype)) for name, a in totals.items()}
        return Progress(averages, self._skipped)

    def _no_codes(self) -> SeenCodes | None:
        return None if self._task.codes is None else nothing_seen(self._task.mesh, self._task.codes)

    def _settle(self, ahead: int) -> bool:
        refused = False
        while len(self._flights) > ahead:
            flight = self._flights.popleft()
            failure = int(flight.failure)
            if failure:
                self._skip(flight, failed_terms(failure, flight.metrics))
                refused = True
        return refused

    def _skip(self, flight: _Flight, terms: list[str]) -> None:
        task = self._task
        step, allowed = int(task.state.step) + 1, task.config.health.max_skipped
        everyone = processes()
        path = save_failed_batch(self._workdir, step, flight.batch, terms, (everyone.index, everyone.count))
        if self._skipped >= allowed:
            raise NonFiniteError(step, terms, batch=path, skipped=self._skipped)
        self._skipped += 1
        if everyone.first:
            logger.warning(SKIPPED, step, ", ".join(terms), self._skipped, allowed, path)
        task.clear_failure()
        again, self._flights = [later.batch for later in self._flights], collections.deque()
        self.number = step - 1
        for batch in again:
            self.step(batch, ahead=None)


def _restored(averages: Mapping[str, tuple[float, int, str]]) -> Averages | None:
    if not averages:
        return None
    return {
        name: clu_metrics.Average(total=np.asarray(total, kind), count=np.asarray(count, np.int32))
        for name, (total, count, kind) in averages.items()
    }
