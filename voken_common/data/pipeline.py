"""The input pipeline: a source becomes batches of float32 images, through Grain.

The training order is that of `voken_common.data.order`, and every random draw is seeded by (seed, position), so that
neither worker nor process count changes what is trained on.

Shape letters: b = images or clips of this process per batch, t = frames of a clip, s = side of the images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from voken_common.config.schema.data import DataConfig
from voken_common.data import transforms
from voken_common.data.bad_images import BadImageLog
from voken_common.data.errors import DataError
from voken_common.data.loaders import training_samples, validation_rows
from voken_common.data.order import Placement, PositionedBatches, check_process, grain, in_a_thread
from voken_common.data.sources.base import ImageSource
from voken_common.data.sources.build import build_source, classes_of


def _collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stack samples as bytes: floats would be four times as much to pass between processes."""
    pixels = "video" if "video" in samples[0] else "image"
    batch: dict[str, Any] = {
        pixels: np.stack([sample[pixels] for sample in samples]),
        "label": np.array([sample["label"] for sample in samples], np.int32),
        "bad": [bad for sample in samples for bad in sample["bad"]],
    }
    if "mask" in samples[0]:
        batch["mask"] = np.array([sample["mask"] for sample in samples], np.float32)
    if "number" in samples[0]:
        batch["number"] = np.array([sample["number"] for sample in samples], np.int32)
    return batch


def _as_floats(batch: dict[str, Any]) -> dict[str, Any]:
    pixels = "video" if "video" in batch else "image"
    return batch | {pixels: transforms.to_float(np.asarray(batch[pixels]))}


def _recorded(batch: dict[str, Any], bad: BadImageLog) -> dict[str, np.ndarray]:
    bad.record(batch.pop("bad"))
    return batch


class TrainIterator(PositionedBatches):
    """Endless (or `epochs` long) batches of this process; see `build_train_iterator`."""

    def __init__(self, source: ImageSource, config: DataConfig, placement: Placement):
        loader = training_samples(source, config)
        super().__init__(source, placement, workers=config.workers)
        if (mixed := _mixed_order(source, placement)) is not None:
            self.order = mixed
        self._samples = self.order.random_map(loader)
        self._bad = BadImageLog(loader.limit, consequence=f"the next good {loader.medium} takes its place")
        self._bytes_per_batch = placement.batch_size * loader.bytes_per_sample
        self._read_threads = config.read_threads

    @property
    def bad_images(self) -> int:
        """Distinct undecodable images that this process met since it started."""
        return len(self._bad)

    def get_state(self) -> dict[str, int]:
        """The position, and what it is a position in; the same on every process."""
        fingerprint = self.source.order_fingerprint()
        return super().get_state() | ({} if fingerprint is None else {"source_order": fingerprint})

    def set_state(self, state: dict[str, int]) -> None:
        """Fingerprint of the order; without weights it may come from a version that knew only the length."""
        if self.source.shares() is None:
            state = {name: value for name, value in self.get_state().items() if name == "source_order"} | state
        super().set_state(state)

    def _batched(self, first: int) -> grain.MapDataset:
        return self._samples[first:].batch(self.batch_size, drop_remainder=True, batch_fn=_collate)

    def _ahead(self, batches: grain.IterDataset) -> grain.IterDataset:
        # The position is that of batches handed out, so nothing is lost with the one that is ready.
        floats = batches.map(_as_floats)
        return in_a_thread(floats if self.place is None else floats.map(self.place))

    def _finished(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        return _recorded(batch, self._bad)


def _mixed_order(source: ImageSource, placement: Placement) -> grain.MapDataset | None:
    """Positions to samples where parts of the source have weights: they take turns, each in epochs of its own.

    An epoch of the iterator is still as many samples as the source has.
    """
    shares = source.shares()
    if shares is None:
        return None
    parts = []
    for number, share in enumerate(shares):
        seed = int(np.random.SeedSequence([placement.seed, number]).generate_state(1)[0])
        part = grain.MapDataset.range(share.start, share.start + share.length)
        parts.append(part.seed(seed).shuffle().repeat())
    mixed = grain.MapDataset.mix(parts, [share.weight for share in shares]).seed(placement.seed)
    return mixed if placement.epochs is None else mixed[: placement.epochs * len(source)]


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
      A `grain.DatasetIterator` over dicts: image float32 (b, s, s, 3) in [-1, 1], or of a video source video float32
      (b, t, s, s, 3), and label int32 (b,).

    Raises:
      DataError: the source cannot be opened, or is smaller than one batch while `epochs` is set.
    """
    source = build_source(config.train) if source is None else source
    placement = Placement(batch_size_per_process, seed, process_index, process_count, epochs)
    placement.check(len(source), source.describe(), "images")
    return TrainIterator(source, config, placement)


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
        self._loader = validation_rows(source, config, self.num_images)

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
                yield _recorded(_as_floats(batch), bad)
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
    labelled: bool = True,
) -> ValidationBatches:
    """The validation images in fixed batches, without any randomness.

    Args:
      config: the `data` section.
      batch_size: images per batch of this process.
      process_index: which process this is.
      process_count: number of processes; all of them get equally many batches.
      max_images: use this many images, spread over the source; None: all.
      source: an opened `config.validation`, or another source to evaluate on; its labels are given as they are.
      labelled: the labels of `config.validation` matter, and are to mean the same classes as those of `config.train`.

    Returns:
      An object to iterate over as often as needed, with `len` and `num_images`. It gives dicts: image float32
      (b, s, s, 3) in [-1, 1], or of a video source video float32 (b, t, s, s, 3), label int32 (b,), mask float32 (b,):
      1 for images, 0 for padding and for images that do not decode; of images also number int32 (b,), of which
      `source.key` makes a name. Means over all images are sums of `mask * value` divided by the sum of `mask`.

    Raises:
      DataError: there is no validation source, or it cannot be opened; or it has classes that `config.train` has not.
    """
    check_process(process_index, process_count)
    if source is None:
        if config.validation is None:
            raise DataError("data.validation is not set: name a source there, like data.train, to validate on")
        source = build_source(config.validation)
        if labelled:
            source.adopt_classes(classes_of(config.train), "data.train")
    if config.validation_image_size is not None:
        config = config.model_copy(update={"image_size": config.validation_image_size})
    return ValidationBatches(
        source,
        config,
        batch_size=batch_size,
        process_index=process_index,
        process_count=process_count,
        max_images=max_images,
    )
