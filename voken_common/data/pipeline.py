"""The input pipeline: a source becomes batches of float32 images, through Grain.

The training order is a pure function of (seed, position): position p lies in epoch p // n, each epoch has its own
permutation, and every random draw is seeded by (seed, p). Global batch k of size B is positions kB to (k + 1)B - 1, and
process r of P holds rows rB/P to (r + 1)B/P - 1 of it. So neither worker nor process count changes what is trained on,
and one number, the position, is the whole state of the iterator.

Shape letters: b = images of this process per batch, s = side of the images.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import flags

from voken_common.data import transforms
from voken_common.data.bad_images import BadImageLog
from voken_common.data.errors import DataError
from voken_common.data.samples import TrainSample, ValidationRow
from voken_common.data.schema import DataConfig
from voken_common.data.sources import ImageSource, build_source
from voken_common.data.workers import initialize_worker

try:
    import grain
except ImportError as error:
    raise ImportError("reading data needs Grain, which is not installed: pip install 'grain>=0.2.17,<0.3'") from error

logger = logging.getLogger("voken.data")

_BATCHES_AHEAD = 2
_SMALLEST_SHARED_BLOCK = 4096
_STATE_VERSION = 1


def _collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stack samples as bytes: floats would be four times as much to pass between processes."""
    batch: dict[str, Any] = {
        "image": np.stack([sample["image"] for sample in samples]),
        "label": np.array([sample["label"] for sample in samples], np.int32),
        "bad": [bad for sample in samples for bad in sample["bad"]],
    }
    if "mask" in samples[0]:
        batch["mask"] = np.array([sample["mask"] for sample in samples], np.float32)
    return batch


def _finish(batch: dict[str, Any], bad: BadImageLog) -> dict[str, np.ndarray]:
    bad.record(batch.pop("bad"))
    return batch | {"image": transforms.to_float(np.asarray(batch["image"]))}


class TrainIterator(grain.DatasetIterator):
    """Endless (or `epochs` long) batches of this process; see `build_train_iterator`."""

    def __init__(
        self,
        source: ImageSource,
        config: DataConfig,
        *,
        batch_size: int,
        seed: int,
        process_index: int,
        process_count: int,
        epochs: int | None,
    ):
        super().__init__()
        self.source = source
        self._config = config
        self._batch_size = batch_size
        self._global_batch_size = batch_size * process_count
        self._seed = seed
        self._process = (process_index, process_count)
        self._epochs = epochs
        self._position = 0
        self._batches: grain.DatasetIterator | None = None
        loader = TrainSample(source, config)
        self._bad = BadImageLog(loader.limit, consequence="the next good image takes its place")
        order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat(epochs)
        self._samples = order.random_map(loader)

    @property
    def position(self) -> int:
        """Samples handed out so far, over all processes."""
        return self._position

    @property
    def epoch(self) -> int:
        """Passes over the source completed so far."""
        return self._position // len(self.source)

    @property
    def bad_images(self) -> int:
        """Distinct undecodable images that this process met since it started."""
        return len(self._bad)

    def __next__(self) -> dict[str, np.ndarray]:
        self._assert_not_closed()
        self.start_prefetch()
        assert self._batches is not None
        try:
            batch = _finish(next(self._batches), self._bad)
        except DataError:
            self.close()
            raise
        self._position += self._global_batch_size
        return batch

    def get_state(self) -> dict[str, int]:
        """The position, and what it is a position in; the same on every process."""
        return {
            "version": _STATE_VERSION,
            "position": self._position,
            "seed": self._seed,
            "source_length": len(self.source),
        }

    def set_state(self, state: dict[str, int]) -> None:
        """Continue at a saved position, with any batch size, process count and worker count.

        Raises:
          DataError: the state belongs to another seed or to a source of another length.
        """
        own = self.get_state()
        for field in ("version", "seed", "source_length"):
            if state.get(field) != own[field]:
                raise DataError(
                    f"cannot continue the data order: the checkpoint has {field} {state.get(field)}, this run has "
                    f"{own[field]}; restore the configuration and the data of the checkpoint, or start a new work "
                    "directory"
                )
        self._stop()
        self._position = state["position"]

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
        process_index, process_count = self._process
        batches = self._samples[self._position :].batch(self._batch_size, drop_remainder=True, batch_fn=_collate)
        # All processes must see the same number of batches, or the last step would wait for ever.
        whole = len(batches) // process_count * process_count
        return _prefetched(batches[process_index:whole:process_count], self._config, self._batch_size)


def _prefetched(batches: grain.MapDataset, config: DataConfig, batch_size: int) -> grain.IterDataset:
    if config.workers == 0:
        threads = min(4, os.cpu_count() or 1)
        return batches.to_iter_dataset(grain.ReadOptions(threads, max(threads, _BATCHES_AHEAD)))
    if not flags.FLAGS.is_parsed():
        # Grain's workers read absl flags, which only absl's own app.run parses.
        flags.FLAGS.mark_as_parsed()
    _warn_if_shared_memory_is_small(config, batch_size)
    read = batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
    # Labels are too small for a shared memory block each.
    read = grain.experimental.WithOptionsIterDataset(
        read, grain.experimental.DatasetOptions(min_shm_size=_SMALLEST_SHARED_BLOCK)
    )
    options = grain.MultiprocessingOptions(config.workers, per_worker_buffer_size=_BATCHES_AHEAD)
    return read.mp_prefetch(options, worker_init_fn=initialize_worker)


def _warn_if_shared_memory_is_small(config: DataConfig, batch_size: int) -> None:
    needed = (config.workers * (_BATCHES_AHEAD + 1) + 1) * batch_size * config.image_size**2 * 3
    if os.path.isdir("/dev/shm") and (free := shutil.disk_usage("/dev/shm").free) < needed:
        logger.warning(
            "%d data workers may need %d MiB of shared memory, %d MiB are free: a worker that finds none is killed; "
            "lower data.workers or give the container more (docker run --shm-size)",
            config.workers,
            needed >> 20,
            free >> 20,
        )


def build_train_iterator(
    config: DataConfig,
    *,
    batch_size_per_process: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    epochs: int | None = None,
    source: ImageSource | None = None,
) -> TrainIterator:
    """Batches of training images, shuffled anew in every epoch.

    Batches run on over the ends of epochs; with `epochs` the incomplete last one is dropped. Save the iterator with
    `grain.checkpoint.CheckpointSave` (or keep `get_state()`, a dict of a few integers) and close it when done.

    Args:
      config: the `data` section.
      batch_size_per_process: images per batch of this process.
      seed: of the order, the crops and the flips.
      process_index: which process this is.
      process_count: number of processes; the global batch is the concatenation of theirs in order.
      epochs: passes over the source; None: without end.
      source: an opened `config.train`, to save opening it twice.

    Returns:
      A `grain.DatasetIterator` over dicts: image float32 (b, s, s, 3) in [-1, 1], label int32 (b,).

    Raises:
      DataError: the source cannot be opened, or is smaller than one batch while `epochs` is set.
    """
    _check_process(process_index, process_count)
    source = build_source(config.train) if source is None else source
    global_batch_size = batch_size_per_process * process_count
    if epochs is not None and epochs * len(source) < global_batch_size:
        raise DataError(
            f"{source.describe()}: {epochs} epochs of {len(source)} images do not fill one batch of "
            f"{global_batch_size}; use a smaller batch or more images"
        )
    return TrainIterator(
        source,
        config,
        batch_size=batch_size_per_process,
        seed=seed,
        process_index=process_index,
        process_count=process_count,
        epochs=epochs,
    )


def steps_per_epoch(config: DataConfig, batch_size: int, *, source: ImageSource | None = None) -> int:
    """Batches of the global `batch_size` that cover the training source once, the last one counted if incomplete."""
    source = build_source(config.train) if source is None else source
    return -(-len(source) // batch_size)


class ValidationBatches:
    """A finite set of batches of one static shape, the same at every pass; see `build_validation_batches`."""

    def __init__(
        self,
        source: ImageSource,
        config: DataConfig,
        *,
        batch_size: int,
        process_index: int,
        process_count: int,
        max_images: int | None,
    ):
        self.source = source
        self.num_images = len(source) if max_images is None else min(max_images, len(source))
        self._config = config
        self._batch_size = batch_size
        self._process = (process_index, process_count)
        self._loader = ValidationRow(source, config, self.num_images)

    def __len__(self) -> int:
        """Batches of every process, also of one whose last batches are all padding."""
        return -(-self.num_images // (self._batch_size * self._process[1]))

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        process_index, process_count = self._process
        rows = grain.MapDataset.range(len(self) * process_count * self._batch_size)
        rows = rows.batch(self._batch_size, batch_fn=list)[process_index::process_count]
        threads = max(2, self._config.workers)
        bad = BadImageLog(self._loader.limit, consequence="left out of the validation")
        batches = iter(rows.map(self._load_batch).to_iter_dataset(grain.ReadOptions(threads, threads)))
        try:
            for batch in batches:
                yield _finish(batch, bad)
        finally:
            batches.close()

    def _load_batch(self, ranks: list[int]) -> dict[str, Any]:
        return _collate([self._loader(rank) for rank in ranks])


def build_validation_batches(
    config: DataConfig,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    max_images: int | None = None,
    source: ImageSource | None = None,
) -> ValidationBatches:
    """The validation images in fixed batches, without any randomness.

    Args:
      config: the `data` section.
      batch_size: images per batch of this process.
      process_index: which process this is.
      process_count: number of processes; all of them get equally many batches.
      max_images: use this many images, spread over the source; None: all.
      source: an opened `config.validation`, or another source to evaluate on.

    Returns:
      An object to iterate over as often as needed, with `len` and `num_images`. It gives dicts: image float32
      (b, s, s, 3) in [-1, 1], label int32 (b,), mask float32 (b,): 1 for images, 0 for padding and for images that do
      not decode. Means over all images are sums of `mask * value` divided by the sum of `mask`.

    Raises:
      DataError: there is no validation source, or it cannot be opened.
    """
    _check_process(process_index, process_count)
    if source is None:
        if config.validation is None:
            raise DataError("data.validation is not set: name a source there, like data.train, to validate on")
        source = build_source(config.validation)
    return ValidationBatches(
        source,
        config,
        batch_size=batch_size,
        process_index=process_index,
        process_count=process_count,
        max_images=max_images,
    )


def _check_process(index: int, count: int) -> None:
    if not 0 <= index < count:
        raise ValueError(f"process_index {index} must lie between 0 and process_count - 1 = {count - 1}")
