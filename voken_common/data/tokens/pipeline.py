"""Token shards become batches, in the same order and with the same guarantees as images (`voken_common.data.order`).

Shape letters: B = samples of this process per batch, T = tokens, S = sub-tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from voken_common.config.schema.generator import TokenDataConfig
from voken_common.data.errors import DataError
from voken_common.data.order import Placement, PositionedBatches, check_process, grain
from voken_common.data.tokens.shards import TokenShardSource


class TokenIterator(PositionedBatches):
    """Endless (or `epochs` long) batches of this process; see `build_token_iterator`."""

    source: TokenShardSource

    def __init__(self, source: TokenShardSource, placement: Placement, *, workers: int):
        super().__init__(source, placement, workers=workers)
        self._bytes_per_batch = self.batch_size * source.info.tokens * len(source.info.vocabularies) * 4

    def get_state(self) -> dict[str, int]:
        """The position, and what it is a position in; the same on every process."""
        return super().get_state() | {"source_order": self.source.order_fingerprint()}

    def _batched(self, first: int) -> grain.MapDataset:
        # Whole batches are read at once: a step through Grain costs more than reading a record.
        return self.order[first:].batch(self.batch_size, drop_remainder=True, batch_fn=list).map(self.source.batch)


def build_token_iterator(
    config: TokenDataConfig,
    *,
    batch_size_per_process: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    epochs: int | None = None,
    source: TokenShardSource | None = None,
) -> TokenIterator:
    """Batches of training tokens, shuffled anew in every epoch.

    Batches run on over the ends of epochs; with `epochs` the incomplete last one is dropped. Save the iterator with
    `grain.checkpoint.CheckpointSave` (or keep `get_state()`, a dict of a few integers) and close it when done.

    Args:
        config: the `data` section of a generator.
        batch_size_per_process: samples per batch of this process.
        seed: of the order.
        process_index: which process this is.
        process_count: number of processes; the global batch is the concatenation of theirs in order.
        epochs: passes over the source; None: without end.
        source: an opened `config.train`, to save opening it twice.

    Returns:
        A `grain.DatasetIterator` over dicts: tokens int32 (B, T, S), labels int32 (B,).

    Raises:
        DataError: the shards cannot be used, or are fewer than one batch while `epochs` is set.
    """
    if source is None:
        if config.train is None:
            raise DataError("data.train is not set: name a folder of token shards there to train on")
        source = TokenShardSource(config.train, config.retry_seconds)
    placement = Placement(batch_size_per_process, seed, process_index, process_count, epochs)
    placement.check(len(source), source.describe())
    return TokenIterator(source, placement, workers=config.workers)


class TokenBatches:
    """A finite set of batches of one static shape, the same at every pass; see `build_token_batches`."""

    def __init__(
        self,
        source: TokenShardSource,
        *,
        batch_size: int,
        process_index: int,
        process_count: int,
        max_samples: int | None,
    ):
        self.source = source
        self.num_samples = len(source) if max_samples is None else min(max_samples, len(source))
        self._batch_size = batch_size
        self._process = (process_index, process_count)

    def __len__(self) -> int:
        """Batches of every process, also of one whose last batches are all padding."""
        return -(-self.num_samples // (self._batch_size * self._process[1]))

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        index, count = self._process
        for first in range(index * self._batch_size, len(self) * count * self._batch_size, count * self._batch_size):
            yield self._load(range(first, first + self._batch_size))

    def _load(self, ranks: Sequence[int]) -> dict[str, np.ndarray]:
        there = [rank for rank in ranks if rank < self.num_samples]
        # Padding repeats a sample, so that every id and label is one that there can be.
        padded = there + [0] * (len(ranks) - len(there))
        batch = self.source.batch([self.source.evaluation_index(rank) for rank in padded])
        return batch | {"mask": (np.arange(len(ranks)) < len(there)).astype(np.float32)}


def build_token_batches(
    config: TokenDataConfig,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    max_samples: int | None = None,
    source: TokenShardSource | None = None,
) -> TokenBatches:
    """The validation tokens in fixed batches, without any randomness.

    Args:
        config: the `data` section of a generator.
        batch_size: samples per batch of this process.
        process_index: which process this is.
        process_count: number of processes; all of them get equally many batches.
        max_samples: use this many samples, spread over the source; None: all.
        source: an opened `config.validation`, or another source to evaluate on.

    Returns:
        An object to iterate over as often as needed, with `len` and `num_samples`. It gives dicts: tokens int32
        (B, T, S), labels int32 (B,), mask float32 (B,): 1 for samples, 0 for padding. Means over all samples are sums
        of `mask * value` divided by the sum of `mask`.

    Raises:
        DataError: there are no validation shards, or they cannot be used.
    """
    check_process(process_index, process_count)
    if source is None:
        if config.validation is None:
            raise DataError("data.validation is not set: name a folder of token shards there to validate on")
        source = TokenShardSource(config.validation, config.retry_seconds)
    return TokenBatches(
        source,
        batch_size=batch_size,
        process_index=process_index,
        process_count=process_count,
        max_samples=max_samples,
    )
