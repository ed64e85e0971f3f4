"""Comparison of exported programs with the tokenizer that they come from: ids, pixels, size and speed.

Shape legend: B batch, H/W pixels, h/w tokens. Images are channels last here; a job's programs take their own layout.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Float, Int

from voken_common.data.decode import decode_image
from voken_common.data.sources.skimage import PHOTOGRAPHS, load_photograph
from voken_common.data.transforms import to_float

TOLERANCE = 1e-3
"""Largest difference of a pixel in [-1, 1] that counts as agreement: other kernels round in another order."""
TOKENS = 16
"""Tokens along the sides of what is cut from each photograph."""


class Job(Protocol):
    """A tokenizer and its exporter in one framework; arrays are NumPy, images channels last."""

    downsampling: int

    def encode(self, images: Float[np.ndarray, "B H W C"]) -> Int[np.ndarray, "B h w"]:
        """Encode with the tokenizer itself."""

    def decode(self, ids: Int[np.ndarray, "B h w"]) -> Float[np.ndarray, "B H W C"]:
        """Decode with the tokenizer itself."""

    def export(self, part: str, target: Path) -> tuple[Callable[[np.ndarray], np.ndarray], str]:
        """Write a part; return the program read back from the file, and a sentence on the sizes that it accepts."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One exported file beside the tokenizer.

    Attributes:
        name: of the file.
        megabytes: its size.
        sizes: sizes that it accepts, in words.
        difference: share of ids that differ (encoder), or largest difference of a pixel (decoder).
        agrees: all ids equal, or pixels within `TOLERANCE`.
        seconds, original_seconds: time of one batch, the best of three, and that of the tokenizer itself.
    """

    name: str
    megabytes: float
    sizes: str
    difference: float
    agrees: bool
    seconds: float
    original_seconds: float


def compare(job: Job, parts: Sequence[str], folder: Path, suffix: str, images: Sequence[str] = ()) -> list[Row]:
    """Export parts into a folder and compare each with the tokenizer on photographs.

    Args:
        job: the tokenizer.
        parts: of encoder and decoder.
        folder: to write to.
        suffix: of the files.
        images: photographs; none: those that scikit-image ships.

    Raises:
        DataError: a photograph that cannot be read or is too small.
    """
    batch = photographs(job.downsampling, images)
    ids = job.encode(batch)
    rows = []
    for part in parts:
        program, sizes = job.export(part, folder / f"{part}{suffix}")
        given, own, expected = (batch, job.encode, ids) if part == "encoder" else (ids, job.decode, job.decode(ids))
        found = program(given)
        difference = float((found != expected).mean() if part == "encoder" else np.abs(found - expected).max())
        agrees = difference == 0 if part == "encoder" else difference <= TOLERANCE
        path = folder / f"{part}{suffix}"
        size = path.stat().st_size / 2**20
        rows.append(Row(path.name, size, sizes, difference, agrees, _best(program, given), _best(own, given)))
    return rows


def photographs(downsampling: int, images: Sequence[str] = ()) -> Float[np.ndarray, "B H W C"]:
    """Cut the middle of photographs to at most 16 x 16 tokens, four of them at most."""
    arrays = [decode_image(name) for name in images] or [load_photograph(name) for name in PHOTOGRAPHS[:4]]
    side = min(TOKENS, *(min(array.shape[:2]) // downsampling for array in arrays)) * downsampling
    if side == 0:
        raise ValueError(f"an image is smaller than one token of {downsampling} x {downsampling} pixels")
    cut = []
    for array in arrays:
        top, left = (array.shape[0] - side) // 2, (array.shape[1] - side) // 2
        cut.append(to_float(array[top : top + side, left : left + side]))
    return np.stack(cut).astype(np.float32)


def table(rows: Sequence[Row]) -> list[str]:
    """Format rows as lines of a table."""
    lines = [f"{'file':22} {'MiB':>8} {'difference':>12} {'seconds':>9} {'original':>9}  accepts"]
    for row in rows:
        what = f"{row.difference:.3g}" + (" ids" if row.name.startswith("encoder") else " px")
        lines.append(
            f"{row.name:22} {row.megabytes:8.1f} {what:>12} {row.seconds:9.3f} {row.original_seconds:9.3f}  {row.sizes}"
        )
    return lines


def _best(function: Callable[[np.ndarray], np.ndarray], given: np.ndarray) -> float:
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        function(given)
        seconds.append(time.perf_counter() - begun)
    return min(seconds)
