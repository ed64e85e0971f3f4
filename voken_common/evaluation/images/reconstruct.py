"""Image files through a tokenizer, and what is written of them; `voken reconstruct`.

Images are found, read and turned as in training, and what does not decode is left out and told. Images of one padded
size share a program and go through it in batches.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from voken_common.atomic_write import replacing
from voken_common.config.schema.tokenizer import Config
from voken_common.data.errors import DataError, ImageDecodeError
from voken_common.data.images import SampleLoader
from voken_common.data.transforms import to_float
from voken_common.evaluation.images.inputs import Found, image_size, loader_of
from voken_common.metrics import bounded_psnr
from voken_common.pixels import pad_to_size, to_uint8
from voken_common.untrusted.names import SafeNames
from voken_common.visual import save_png, side_by_side

logger = logging.getLogger("voken")

PICTURE_IMAGES = 16
MOST_PROGRAMS = 8
"""Padded sizes, each of which is a program, before sizes are padded to larger multiples."""
SUMMARY, IDS, PICTURE = "psnr.json", "ids.npz", "side_by_side.png"


class ImageTokenizer(Protocol):
    """The part of a tokenizer that the command uses: images (B, H, W, 3) in [-1, 1], ids (B, h, w), NumPy arrays."""

    config: Config
    downsampling: int
    decode: Callable[[Int[np.ndarray, "B h w"]], Float[np.ndarray, "B H W 3"]]

    @property
    def encode(self) -> Callable[[Float[np.ndarray, "B H W 3"]], Int[np.ndarray, "B h w"]]:
        """Ids of images."""


@dataclasses.dataclass(frozen=True)
class Treatment:
    """Preparation of images before the tokenizer sees them.

    Attributes:
        side: of the square that is cut out of each resized image; None: whole images as they are.
        resize: convention of that resize; None: that of the tokenizer's configuration.
        exif_rotate: turn images by their EXIF tag; None: as the tokenizer's configuration says.
        batch_size: images of one size that go through the tokenizer at once.
        multiple: sides are padded to multiples of so many pixels; None: whole tokens, more where there are many sizes.
    """

    side: int | None = None
    resize: str | None = None
    exif_rotate: bool | None = None
    batch_size: int = 8
    multiple: int | None = None


def output_names(keys: Sequence[str]) -> list[str]:
    """A file name without folders for each path below the input; no two are the same for any file system."""
    names = SafeNames(reserved=(SUMMARY, IDS, PICTURE))
    suffix = ".reconstruction.png"
    return [str(names.path(key.replace("/", "__"), suffix)).removesuffix(suffix) for key in keys]


def reconstruct(
    tokenizer: ImageTokenizer, found: Found, output: Path, treatment: Treatment | None = None
) -> dict[str, float]:
    """Encode and decode image files of any size, padded to whole tokens and cropped back.

    Writes every reconstruction as PNG, a side-by-side picture, the ids as `ids.npz`, and PSNR per image and on average
    as `psnr.json`, with what was left out and why.

    Returns:
        PSNR in dB by image, at most `voken_common.metrics.HIGHEST_PSNR`.

    Raises:
        DataError: no image can be decoded.
    """
    work = _Work(tokenizer, found, output, treatment or Treatment())
    values = work.run()
    work.write_summary(values)
    return values


def print_result(values: dict[str, float], output: str) -> None:
    """PSNR per image and on average."""
    for name, value in values.items():
        print(f"{value:7.2f} dB  {name}")
    print(f"{np.mean(list(values.values())):7.2f} dB  mean of {len(values)} image(s), written to {output}")


class _Work:
    """One call: what is where, and what has come out of it so far, by number of the image."""

    def __init__(self, tokenizer: ImageTokenizer, found: Found, output: Path, treatment: Treatment):
        self._tokenizer, self._found, self._output, self._treatment = tokenizer, found, output, treatment
        if treatment.side is not None and treatment.side % tokenizer.downsampling:
            raise DataError(
                f"--image-size {treatment.side} is no multiple of {tokenizer.downsampling}, the pixels per token"
            )
        if treatment.multiple is not None and treatment.multiple % tokenizer.downsampling:
            raise DataError(
                f"--pad-multiple {treatment.multiple} is no multiple of {tokenizer.downsampling}, the pixels per token"
            )
        data = tokenizer.config.data
        self._loader: SampleLoader = loader_of(
            found.source,
            side=treatment.side or tokenizer.downsampling,
            resize=treatment.resize or data.resize,
            exif_rotate=data.exif_rotate if treatment.exif_rotate is None else treatment.exif_rotate,
        )
        self._names = output_names(found.keys)
        self._bad: dict[int, str] = {}
        self._ids: dict[int, np.ndarray] = {}
        self._values: dict[int, float] = {}
        self._shown: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def run(self) -> dict[str, float]:
        """PSNR by name, in the order of the input."""
        groups = self._groups()
        total = sum(map(len, groups.values()))
        with tqdm(total=total, unit="image", disable=total < 2) as bar:
            for size, members in groups.items():
                for batch in self._batches(members):
                    self._reconstruct(size, *batch)
                    bar.update(len(batch[0]))
        if not self._values:
            raise DataError(f"no image can be decoded: {'; '.join(list(self._bad.values())[:3])}")
        return {self._names[index]: self._values[index] for index in sorted(self._values)}

    def _leave_out(self, index: int, error: ImageDecodeError) -> None:
        self._bad[index] = str(error)
        logger.warning("%s; left out", error)

    def _groups(self) -> dict[tuple[int, int], list[int]]:
        """Numbers of images by the size to which they are padded."""
        if self._treatment.side is not None:
            return {(self._treatment.side, self._treatment.side): list(range(len(self._names)))}
        sizes: dict[int, tuple[int, int]] = {}
        for index in range(len(self._names)):
            try:
                sizes[index] = image_size(self._loader, index)
            except ImageDecodeError as error:
                self._leave_out(index, error)
        multiple = self._treatment.multiple or self._multiple(list(sizes.values()))
        groups: dict[tuple[int, int], list[int]] = {}
        for index, size in sizes.items():
            groups.setdefault(_padded(size, multiple), []).append(index)
        return groups

    def _multiple(self, sizes: Sequence[tuple[int, int]]) -> int:
        """Pixels per token, doubled until there are few padded sizes; said where it is more than a token."""
        multiple = self._tokenizer.downsampling
        before = len({_padded(size, multiple) for size in sizes})
        while len(found := {_padded(size, multiple) for size in sizes}) > MOST_PROGRAMS:
            multiple *= 2
        if multiple > self._tokenizer.downsampling:
            logger.info(
                "images of %d sizes are padded with grey to multiples of %d pixels, so that %d programs are compiled "
                "and not %d; the padding is cut off again, but normalisation sees it: --pad-multiple %d pads to whole "
                "tokens alone",
                before,
                multiple,
                len(found),
                before,
                self._tokenizer.downsampling,
            )
        return multiple

    def _batches(self, members: Sequence[int]) -> Iterator[tuple[list[int], list[np.ndarray], int]]:
        """Numbers of images, the images in [-1, 1], and how many the program takes."""
        size = min(self._treatment.batch_size, len(members))
        for first in range(0, len(members), size):
            numbers, images = [], []
            for index in members[first : first + size]:
                try:
                    images.append(to_float(self._pixels(index)))
                    numbers.append(index)
                except ImageDecodeError as error:
                    self._leave_out(index, error)
            if numbers:
                yield numbers, images, size

    def _pixels(self, index: int) -> np.ndarray:
        if self._treatment.side is not None:
            image, _ = self._loader.resized(index)
            return self._loader.fixed_view(index, image)
        image, _ = self._loader.whole(index)
        if image.shape[:2] != (stated := image_size(self._loader, index)):
            raise ImageDecodeError(
                f"{self._found.source.key(index)}: {image.shape[0]} x {image.shape[1]} pixels decode, its header says "
                f"{stated[0]} x {stated[1]}"
            )
        return image

    def _reconstruct(self, size: tuple[int, int], numbers: list[int], images: list[np.ndarray], count: int) -> None:
        padded, regions = zip(*(pad_to_size(image, *size) for image in images), strict=True)
        # The batch is filled up, so that one program takes them all: what is added is left out again.
        batch = np.stack([*padded, *[padded[-1]] * (count - len(padded))])
        ids = self._tokenizer.encode(batch)
        results = self._tokenizer.decode(ids)
        for number, image, region, codes, result in zip(numbers, images, regions, ids, results, strict=False):
            back = region.crop(result)
            self._ids[number] = codes
            self._values[number] = float(bounded_psnr(image[None], back[None])[0])
            save_png(self._output / f"{self._names[number]}.reconstruction.png", to_uint8(back))
            if number < PICTURE_IMAGES:
                self._shown[number] = image, back

    def write_summary(self, values: dict[str, float]) -> None:
        """The picture, the ids and PSNR."""
        if self._shown:
            pairs = [self._shown[number] for number in sorted(self._shown)]
            names = [self._names[number] for number in sorted(self._shown)]
            originals, results = zip(*pairs, strict=True)
            save_png(self._output / PICTURE, side_by_side(originals, results, names))
        _save_arrays(self._output / IDS, {self._names[number]: self._ids[number] for number in sorted(self._ids)})
        summary: dict[str, Any] = {"mean": float(np.mean(list(values.values()))), "images": values}
        if self._bad:
            summary["left_out"] = {self._names[number]: self._bad[number] for number in sorted(self._bad)}
            logger.warning("%d of %d images were left out", len(self._bad), len(self._names))
        with replacing(self._output / SUMMARY) as file:
            file.write(json.dumps(summary, indent=1, allow_nan=False).encode())


def _padded(size: tuple[int, int], multiple: int) -> tuple[int, int]:
    height, width = (-(-side // multiple) * multiple for side in size)
    return height, width


def _save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """An .npz of arrays of any names; `numpy.savez` takes names as keywords, and some are its own."""
    with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as entry:
                np.lib.format.write_array(entry, np.asarray(array), allow_pickle=False)
