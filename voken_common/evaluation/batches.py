"""Samples loaded ahead by threads, and stacked into batches of one size.

The last batch of a shard is filled up by repeating its last sample, so that one compiled program measures them all; its
`present` says which rows count. Samples that cannot be decoded are there as grey and do not count.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np

T = TypeVar("T")
Row = dict[str, Any]


class Batch(NamedTuple):
    """Samples of one shape.

    Attributes:
        ranks: place of every row in the evaluation order.
        pixels: uint8 (B, H, W, 3), or of clips (B, T, H, W, 3).
        present: rows that count.
        bad: names and reasons of samples that could not be decoded.
    """

    ranks: np.ndarray
    pixels: np.ndarray
    present: np.ndarray
    bad: list[str]


def ahead(function: Callable[[int], T], items: Iterable[int], *, threads: int, depth: int) -> Iterator[T]:
    """`function` of every item in order, computed by threads up to `depth` items ahead."""
    with ThreadPoolExecutor(threads, thread_name_prefix="voken-load") as pool:
        waiting: deque[Future[T]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def batches(
    loader: Callable[[int], Row], ranks: range, *, batch_size: int, threads: int, pixels: str = "image"
) -> Iterator[Batch]:
    """The samples `ranks` in batches of exactly `batch_size` rows.

    Args:
        loader: from the place in the evaluation order to a row: `pixels`, mask, bad.
        ranks: places.
        batch_size: rows.
        threads: that load.
        pixels: name of the row's pixels, `image` or `video`.
    """
    rows: list[tuple[int, Row]] = []
    loaded = zip(ranks, ahead(loader, ranks, threads=threads, depth=2 * batch_size), strict=True)
    for rank, row in loaded:
        rows.append((rank, row))
        if len(rows) == batch_size or rank == ranks[-1]:
            yield _stack(rows, batch_size, pixels)
            rows = []


def _stack(rows: list[tuple[int, Row]], batch_size: int, pixels: str) -> Batch:
    filled = rows + rows[-1:] * (batch_size - len(rows))
    present = np.array([row["mask"] > 0 for _, row in filled])
    present[len(rows) :] = False
    bad = [str(image.reason) if hasattr(image, "reason") else str(image) for _, row in rows for image in row["bad"]]
    return Batch(np.array([rank for rank, _ in filled]), np.stack([row[pixels] for _, row in filled]), present, bad)
