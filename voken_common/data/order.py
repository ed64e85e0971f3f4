"""The order of training samples, which every training iterator follows, through Grain.

It is a pure function of (seed, position): position p lies in epoch p // n, and each epoch has its own permutation.
Global batch k of size B is positions kB to (k + 1)B - 1, and process r of P holds rows rB/P to (r + 1)B/P - 1 of it. So
neither worker nor process count changes what is trained on, and one number, the position, is the whole state.
"""

from __future__ import annotations

import abc
import logging
import os
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from voken_common.data.errors import DataError
from voken_common.data.workers import initialize_training_worker

try:
    import grain as grain
except ImportError as error:
    raise ImportError("reading data needs Grain, which is not installed: pip install 'grain>=0.2.17,<0.3'") from error

logger = logging.getLogger("voken.data")

_BATCHES_AHEAD = 2
_SMALLEST_SHARED_BLOCK = 4096
_STATE_VERSION = 1
_OF_DATA = ("source_length", "source_order")
"""Fields of a state that say what is trained on."""
_WORKER_DIED = """\
{error}, one of data.workers. By the code:
  -9   the system killed it, mostly for want of memory: lower data.workers or data.read_threads
  -7   shared memory is full: give the container more (docker run --shm-size), or lower data.workers
  -11  a file crashed its decoder: `python -X faulthandler` with --set data.workers=0 shows where
The same command continues from what it has saved last."""


class Placement(NamedTuple):
    """The part of the order that one process sees.

    Attributes:
        batch_size: samples per batch of this process.
        seed: of the order.
        process_index, process_count: which process this is; the global batch is theirs concatenated.
        epochs: passes over the source; None: without end.
    """

    batch_size: int
    seed: int
    process_index: int = 0
    process_count: int = 1
    epochs: int | None = None

    def check(self, length: int, source: str, what: str = "samples") -> None:
        """Raise ValueError for an impossible process, DataError if a source of this length does not fill a batch."""
        check_process(self.process_index, self.process_count)
        needed = self.batch_size * self.process_count
        if self.epochs is not None and self.epochs * length < needed:
            raise DataError(
                f"{source}: {self.epochs} epochs of {length} {what} do not fill one batch of {needed}; use a smaller "
                f"batch or more {what}"
            )


class PositionedBatches(grain.DatasetIterator):
    """Endless (or `epochs` long) batches of this process, whose state is one position.

    Args:
        source: what is trained on; anything with a length.
        placement: of this process.
        workers: Grain worker processes; 0: threads.
    """

    place: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    """What is done to a batch before it is asked for, in a thread, such as beginning to copy it to a device; to be set
    before the first batch. What it returns is handed out, and only then counted in the position."""
    allow_changed_data = False
    """A state of other data is taken, too, and the order begins anew."""
    _bytes_per_batch = 0
    _read_threads = 1

    def __init__(self, source: Any, placement: Placement, *, workers: int):
        super().__init__()
        self.source = source
        self.batch_size = placement.batch_size
        self._placement, self._workers = placement, workers
        self._position = 0
        self._batches: grain.DatasetIterator | None = None
        self.order = grain.MapDataset.range(len(source)).seed(placement.seed).shuffle().repeat(placement.epochs)

    @abc.abstractmethod
    def _batched(self, first: int) -> grain.MapDataset:
        """All batches from position `first` of `order` on, the incomplete last one dropped."""

    def _ahead(self, batches: grain.IterDataset) -> grain.IterDataset:
        """Work of the main process on batches before they are asked for."""
        return batches if self.place is None else in_a_thread(batches.map(self.place))

    def _finished(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """Turn an element of `_batched` into what the iterator hands out; runs in the main process."""
        return batch

    @property
    def position(self) -> int:
        """Samples handed out so far, over all processes."""
        return self._position

    @property
    def epoch(self) -> int:
        """Passes over the source completed so far."""
        return self._position // len(self.source)

    def __next__(self) -> dict[str, np.ndarray]:
        self._assert_not_closed()
        self.start_prefetch()
        assert self._batches is not None
        try:
            batch = self._finished(next_batch(self._batches))
        except DataError:
            self.close()
            raise
        self._position += self.batch_size * self._placement.process_count
        return batch

    def get_state(self) -> dict[str, int]:
        """The position, and what it is a position in; the same on every process."""
        return {
            "version": _STATE_VERSION,
            "position": self._position,
            "seed": self._placement.seed,
            "source_length": len(self.source),
        }

    def set_state(self, state: dict[str, int]) -> None:
        """Continue at a saved position, with any batch size, process count and worker count.

        Raises:
          DataError: the state belongs to another seed or, unless `allow_changed_data`, to other data.
        """
        own = self.get_state()
        changed = [f for f in dict.fromkeys([*own, *state]) if f != "position" and state.get(f) != own.get(f)]
        of_data = [field for field in changed if field in _OF_DATA]
        if changed and not (self.allow_changed_data and changed == of_data):
            field = next((field for field in changed if field not in _OF_DATA), changed[0])
            way_out = "; --allow data goes on with the data as they are now, in an order that begins anew"
            raise DataError(
                f"cannot continue the data order: the checkpoint has {field} {state.get(field)}, this run has "
                f"{own.get(field)}; restore the configuration and the data of the checkpoint, or start a new work "
                f"directory{way_out if field in _OF_DATA else ''}"
            )
        self._stop()
        if changed:
            logger.warning(
                "the data changed since the checkpoint (%s): their order begins anew",
                ", ".join(f"{field} was {state.get(field)}, is {own.get(field)}" for field in changed),
            )
        self._position = 0 if changed else state["position"]

    def start_prefetch(self) -> None:
        """Start workers and threads now instead of at the first batch."""
        if self._batches is None:
            self._batches = iter(self._dataset())
            self._batches.start_prefetch()

    def close(self) -> None:
        """Stop workers and threads; the iterator is of no use afterwards."""
        self._closed = True
        self._stop()

    def _stop(self) -> None:
        if self._batches is not None:
            self._batches.close()
            self._batches = None

    def _dataset(self) -> grain.IterDataset:
        batches, count = self._batched(self._position), self._placement.process_count
        # All processes must see the same number of batches, or the last step would wait for ever.
        whole = len(batches) // count * count
        own = batches[self._placement.process_index : whole : count]
        return self._ahead(prefetched(own, self._workers, self._bytes_per_batch, read_threads=self._read_threads))


def check_process(index: int, count: int) -> None:
    """Raise ValueError unless this is one of `count` processes."""
    if not 0 <= index < count:
        raise ValueError(f"process_index {index} must lie between 0 and process_count - 1 = {count - 1}")


def in_a_thread(batches: grain.IterDataset) -> grain.IterDataset:
    """Batches that are made one ahead, while the loop that takes them waits for a device."""
    return grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=1)


def prefetched(
    batches: grain.MapDataset, workers: int, bytes_per_batch: int, *, read_threads: int = 1
) -> grain.IterDataset:
    """Batches in their order, prepared ahead by worker processes of some threads, or by threads for 0 workers."""
    if workers == 0:
        threads = max(read_threads, min(4, os.cpu_count() or 1))
        return batches.to_iter_dataset(grain.ReadOptions(threads, max(threads, _BATCHES_AHEAD)))
    if not flags.FLAGS.is_parsed():
        # Grain's workers read absl flags, which only absl's own app.run parses.
        flags.FLAGS.mark_as_parsed()
    _warn_if_shared_memory_is_small(workers, bytes_per_batch)
    read = batches.to_iter_dataset(grain.ReadOptions(read_threads, prefetch_buffer_size=read_threads))
    # Labels are too small for a shared memory block each.
    read = grain.experimental.WithOptionsIterDataset(
        read, grain.experimental.DatasetOptions(min_shm_size=_SMALLEST_SHARED_BLOCK)
    )
    options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=_BATCHES_AHEAD)
    return read.mp_prefetch(options, worker_init_fn=initialize_training_worker)


def next_batch(batches: grain.DatasetIterator) -> Any:
    """The next one of an iterator over what `prefetched` gives.

    Raises:
        StopIteration: there are no more.
        DataError: reading it failed, or a worker process was killed.
    """
    try:
        return next(batches)
    except RuntimeError as error:
        # Grain has no type of its own for it.
        if "Worker process was terminated" not in str(error):
            raise
        raise DataError(_WORKER_DIED.format(error=str(error).split(". Search")[0])) from error


def _warn_if_shared_memory_is_small(workers: int, bytes_per_batch: int) -> None:
    needed = (workers * (_BATCHES_AHEAD + 1) + 1) * bytes_per_batch
    if os.path.isdir("/dev/shm") and (free := shutil.disk_usage("/dev/shm").free) < needed:
        logger.warning(
            "%d data workers may need %d MiB of shared memory, %d MiB are free: a worker that finds none is killed; "
            "lower data.workers or give the container more (docker run --shm-size)",
            workers,
            needed >> 20,
            free >> 20,
        )
