"""Generated images to be measured: an .npz of one array, a folder of pictures, or a function that draws them.

All are read in pieces: an .npz of 50 000 images is 10 GB. Images are uint8 (N, H, W, 3), all of one size.
"""

from __future__ import annotations

import re
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from jaxtyping import UInt8

from voken_common.data.decode import decode_image
from voken_common.errors import UserError

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_CLASS = re.compile(r"class_(\d+)")
Images = UInt8[np.ndarray, "n h w 3"]


class Samples(Protocol):
    """Images by number."""

    def __len__(self) -> int:
        """Images there are."""

    def read(self, start: int, stop: int) -> Images:
        """Images `start` to `stop` - 1."""

    def describe(self) -> str:
        """One line for reports."""


def open_samples(path: str | Path) -> Samples:
    """An .npz file or a folder of pictures.

    Raises:
        UserError: neither, or one that holds no such images.
    """
    path = Path(path)
    if path.is_dir():
        return PictureFolder(path)
    if not path.exists():
        raise UserError(f"no file or folder {path}; expected an .npz of samples or a folder of pictures")
    return NpzSamples(path)


class NpzSamples:
    """The array `arr_0` of an .npz, read in pieces."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            self._archive = zipfile.ZipFile(self.path)
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"{path} is not an .npz file ({error})") from error
        names = [name.removesuffix(".npy") for name in self._archive.namelist()]
        if "arr_0" not in names:
            raise UserError(f"{path} holds {', '.join(names) or 'nothing'}; expected an array arr_0 of uint8 images")
        self._file: IO[bytes] | None = None
        self._next = 0
        shape, dtype = self._open()
        if dtype != np.uint8:
            raise UserError(
                f"{path}: arr_0 is {dtype}, expected uint8 in 0..255: scale and truncate it, knowing its range, and "
                "save it again"
            )
        if len(shape) != 4 or shape[3] != 3 or 0 in shape:
            raise UserError(f"{path}: arr_0 has shape {shape}, expected (N, H, W, 3), channels last")
        self._shape = shape

    def __len__(self) -> int:
        return int(self._shape[0])

    def read(self, start: int, stop: int) -> Images:
        """Read forward through the file; reading backward starts it again."""
        if self._file is None or start < self._next:
            self._open()
        assert self._file is not None
        size = int(np.prod(self._shape[1:]))
        skipped = (start - self._next) * size
        while skipped:
            piece = len(self._file.read(min(skipped, 1 << 24)))
            if not piece:
                raise UserError(f"{self.path} ends early: it is damaged")
            skipped -= piece
        data = self._file.read((stop - start) * size)
        if len(data) != (stop - start) * size:
            raise UserError(f"{self.path} ends early: it is damaged")
        self._next = stop
        return np.frombuffer(data, np.uint8).reshape(stop - start, *self._shape[1:])

    def describe(self) -> str:
        """File, number and size."""
        return f"{self.path.name}: {len(self)} images of {self._shape[1]}x{self._shape[2]}"

    def _open(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Go to the first image."""
        self._file, self._next = self._archive.open("arr_0.npy"), 0
        try:
            version = np.lib.format.read_magic(self._file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(self._file)
        except ValueError as error:
            raise UserError(f"{self.path}: arr_0 is not an array ({error})") from error
        if fortran and len(shape) > 1:
            raise UserError(f"{self.path}: arr_0 is in Fortran order; expected C order")
        return shape, dtype


class PictureFolder:
    """Pictures below a folder in the order of their names; folders `class_NUMBER` have to be equally full."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        found = [p for p in self.path.rglob("*") if p.suffix.lower() in _SUFFIXES and not p.name.startswith(".")]
        in_classes = [p for p in found if _CLASS.fullmatch(p.parent.name)]
        # `voken sample` puts an overview beside its class folders, which is no sample.
        self._files = sorted(in_classes or found)
        if not self._files:
            raise UserError(f"{path} holds no pictures ({', '.join(_SUFFIXES)}); expected generated images")
        self._check_classes()
        self._shape = self._decode(self._files[0]).shape

    def __len__(self) -> int:
        return len(self._files)

    def read(self, start: int, stop: int) -> Images:
        """Decode the pictures."""
        return np.stack([self._decode(file) for file in self._files[start:stop]])

    def describe(self) -> str:
        """Folder, number and size."""
        return f"{self.path.name}: {len(self)} pictures of {self._shape[0]}x{self._shape[1]}"

    def _decode(self, file: Path) -> np.ndarray:
        image = decode_image(file)
        expected = getattr(self, "_shape", image.shape)
        if image.shape != expected:
            raise UserError(
                f"{file} has {image.shape[0]}x{image.shape[1]} pixels, the first has {expected[0]}x{expected[1]}"
            )
        return image

    def _check_classes(self) -> None:
        counts = Counter(int(match[1]) for file in self._files if (match := _CLASS.fullmatch(file.parent.name)))
        if not counts:
            return
        most = max(counts.values())
        short = [label for label in range(max(counts) + 1) if counts[label] != most]
        if short:
            raise UserError(
                f"{self.path}: class {short[0]} has {counts[short[0]]} pictures and others have {most} ({len(short)} "
                "classes are short): a distance would measure the missing classes. Draw them, or evaluate a folder "
                "without class_NUMBER folders"
            )


class DrawnSamples:
    """Images that a function draws by their numbers, in batches of one size.

    Args:
        total: images.
        draw: gives uint8 images for numbers, always `batch_size` of them.
        batch_size: of `draw`.
        about: one line for reports.
    """

    def __init__(self, total: int, draw: Callable[[np.ndarray], Images], batch_size: int, about: str):
        self._total, self._draw, self._batch_size, self._about = total, draw, batch_size, about

    def __len__(self) -> int:
        return self._total

    def read(self, start: int, stop: int) -> Images:
        """Draw them."""
        numbers = np.arange(start, stop)
        parts = []
        for first in range(0, len(numbers), self._batch_size):
            wanted = numbers[first : first + self._batch_size]
            filled = np.concatenate([wanted, np.repeat(wanted[-1:], self._batch_size - len(wanted))])
            parts.append(self._draw(filled)[: len(wanted)])
        return np.concatenate(parts)

    def describe(self) -> str:
        """Describe the source of the samples."""
        return f"{self._total} images drawn from {self._about}"
