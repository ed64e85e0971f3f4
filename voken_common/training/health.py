"""Signs of life and of trouble of a run: heartbeat, stalled input, and batches that broke a step."""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np

from voken_common.atomic_write import replacing
from voken_common.config.schema.run import HealthConfig
from voken_common.errors import CheckpointError
from voken_common.untrusted.archives import require_modest

logger = logging.getLogger("voken")

HEARTBEAT = "heartbeat.json"
SKIPPED = "step %d: not finite: %s. This batch is skipped (%d of at most %d) and kept in %s"
"""The warning about a refused batch: step, terms, how many, how many are allowed, file."""
Phase = Literal["starting", "training", "validating", "saving", "finished", "stopped", "failed"]


class Heartbeat:
    """`heartbeat.json` in the work directory: that the run lives, where it is and how fast it goes.

    It is written by the training loop itself, so a loop that hangs stops beating; a watcher compares `time` with its
    own clock. The file is replaced as a whole, at most every `health.heartbeat_seconds` and at every change of phase.

    Args:
        workdir: where the file lies.
        config: how often it is written.
        images_per_step: for the rate.
        enabled: False on all processes but the first.
    """

    def __init__(self, workdir: Path, config: HealthConfig, images_per_step: int, enabled: bool = True):
        self._path, self._every, self._images = workdir / HEARTBEAT, config.heartbeat_seconds, images_per_step
        self._enabled = enabled
        self._phase: Phase | None = None
        self._last: tuple[float, int] | None = None
        self._failed = False

    def beat(self, step: int, phase: Phase = "training") -> None:
        """Say that `step` is done; a disk that takes no heartbeat does not stop a run."""
        now = time.monotonic()
        if not self._enabled or (phase == self._phase and self._last and now - self._last[0] < self._every):
            return
        rate = None
        if phase == self._phase == "training" and self._last is not None:
            rate = round((step - self._last[1]) * self._images / max(now - self._last[0], 1e-9), 2)
        self._phase, self._last = phase, (now, step)
        moment = datetime.datetime.now(datetime.UTC)
        content = {
            "step": step,
            "phase": phase,
            "time": moment.isoformat(timespec="seconds"),
            "unix_time": round(moment.timestamp(), 1),
            "images_per_second": rate,
            "pid": os.getpid(),
            "host": socket.gethostname(),
        }
        try:
            with replacing(self._path) as file:
                file.write(json.dumps(content).encode() + b"\n")
        except OSError as error:
            if not self._failed:
                logger.warning("%s cannot be written (%s); the run goes on without it", self._path, error.strerror)
            self._failed = True

    @contextlib.contextmanager
    def lasting(self, step: Callable[[], int]) -> Iterator[None]:
        """Around the whole loop: an error that ends it is the last thing the file says."""
        try:
            yield
        except BaseException:
            self.beat(step(), "failed")
            raise


class InputWatch:
    """Warns while the training loop waits for its next batch longer than it should; a context manager.

    A thread looks, so that the warning comes while the loop is stuck and not after. It warns once per wait, and says
    how long the wait took once it is over.

    Args:
        config: `stalled_input_seconds`.
        advice: what to look at, for the message.
    """

    def __init__(self, config: HealthConfig, advice: str):
        self._limit, self._advice = config.stalled_input_seconds, advice
        self._since: float | None = None
        self._warned = False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, name="input watch", daemon=True)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around everything that waits for data."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            waited, self._since = time.monotonic() - self._since, None
            if self._warned:
                logger.warning("the input goes on after %.0f s", waited)
            self._warned = False

    def _look(self) -> None:
        while not self._end.wait(min(1.0, self._limit / 4)):
            since = self._since
            if since is not None and not self._warned and time.monotonic() - since > self._limit:
                self._warned = True
                logger.warning(
                    "the input is stalled: the training loop has been waiting for data for %.0f s "
                    "(health.stalled_input_seconds is %g). %s",
                    time.monotonic() - since,
                    self._limit,
                    self._advice,
                )

    def __enter__(self) -> InputWatch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()


INPUT_ADVICE = (
    "Look at the disk or network that holds the data, at the processes of data.workers (is one stopped or out of "
    "memory?), and at /dev/shm"
)


def failed_batch_path(workdir: Path, step: int, process: tuple[int, int] = (0, 1)) -> Path:
    """Return the file of a batch that broke a step; one file per process, which holds its share."""
    index, count = process
    share = "" if count == 1 else f"_process_{index}_of_{count}"
    return workdir / f"failed_batch_{step}{share}.npz"


def save_failed_batch(
    workdir: Path, step: int, batch: Mapping[str, np.ndarray], terms: list[str], process: tuple[int, int] = (0, 1)
) -> Path | None:
    """Keep the batch of a step that was refused, for `--replay`; None where the disk does not take it."""
    path = failed_batch_path(workdir, step, process)
    try:
        with replacing(path) as file:
            arrays: dict[str, Any] = {f"batch/{name}": np.asarray(value) for name, value in batch.items()}
            np.savez(file, allow_pickle=False, step=np.int64(step), terms=np.array(terms, dtype=np.str_), **arrays)
    except OSError as error:
        logger.warning("the batch of step %d cannot be kept in %s (%s)", step, path, error.strerror)
        return None
    return path


def load_failed_batch(path: str | Path) -> tuple[int, dict[str, np.ndarray], list[str]]:
    """(number of the step, the batch by name, the terms that were not finite) of such a file.

    Raises:
        CheckpointError: it cannot be read, or is something else.
    """
    path = Path(path)
    try:
        require_modest(path)
        with np.load(path, allow_pickle=False) as content:
            batch = {name.removeprefix("batch/"): content[name] for name in content.files if name.startswith("batch/")}
            if not batch:
                raise KeyError("batch/...")
            return int(content["step"]), batch, [str(term) for term in content["terms"]]
    except Exception as error:
        raise CheckpointError(
            f"{path} cannot be replayed ({type(error).__name__}: {error}); expected a failed_batch_<step>.npz as "
            "training leaves it in its work directory"
        ) from error


def check_replayed(path: Path, batch: Mapping[str, np.ndarray], batch_size: int) -> None:
    """Raise CheckpointError unless a kept batch is a whole one: processes keep their shares in files of their own."""
    found = sorted({len(array) for array in batch.values() if np.ndim(array)})
    if found != [batch_size]:
        raise CheckpointError(
            f"{path} holds {found} samples, training.batch_size is {batch_size}: a run of several processes keeps a "
            "share per process, so replay one with --set training.batch_size=<samples> in one process"
        )


def describe_replay(path: Path, step: int, terms: list[str], at: int, metrics: Mapping[str, float]) -> str:
    """Format the terms of a replayed step as a table.

    Args:
        path: the file of the batch.
        step: the step that was refused, and its terms that were not finite.
        terms: those.
        at: step of the checkpoint it was replayed on.
        metrics: what it gave.
    """
    lines = [
        f"{path} broke step {step} ({', '.join(terms)}); here it meets the weights of step {at}, the newest checkpoint:"
    ]
    for name in sorted(metrics):
        mark = "" if math.isfinite(metrics[name]) else "   <- not finite"
        lines.append(f"  {name:32} {metrics[name]:<12.6g}{mark}")
    if all(map(math.isfinite, metrics.values())):
        lines.append(
            "All terms are finite here, so the batch alone does not explain it: the weights of the steps between do. "
            "Save more often (checkpoint.every) to come closer"
        )
    return "\n".join(lines)
