"""From a sample of a source to the pixels that the network sees, one sample at a time and without Grain.

Shape letters: h w = any height and width, s = side of the square that the network sees.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from voken_common.config.schema.data import DataConfig
from voken_common.data import transforms
from voken_common.data.bad_images import BadImage, BadImageLimit
from voken_common.data.decode import MAX_ASPECT, open_image
from voken_common.data.errors import ImageDecodeError
from voken_common.data.sources.base import ImageSource
from voken_common.data.storage.files import folder_expected
from voken_common.data.storage.retry import Patience, reason

T = TypeVar("T")

_CACHE_LOCKS = tuple(threading.Lock() for _ in range(64))
"""Threads share a cache; images are spread over these locks by index. Not in the loader, which travels to workers."""


class SampleLoader:
    """Reads, decodes and resizes single samples; keeps the result if the configuration says `cache`."""

    medium = "image"

    def __init__(self, source: ImageSource, config: DataConfig):
        self.source = source
        self.config = config
        self.limit = BadImageLimit(len(source), config.max_bad_fraction)
        self._patience = Patience(config.retry_seconds)
        self._cache: dict[int, tuple[UInt8[np.ndarray, "h w 3"], int]] = {}

    @property
    def bytes_per_sample(self) -> int:
        """Dtype of the pixels that worker processes send."""
        return self.config.image_size**2 * 3

    def resized(self, index: int) -> tuple[UInt8[np.ndarray, "h w 3"], int]:
        """The image of a sample, its shorter side at least `image_size` pixels, and its label.

        Raises:
          ImageDecodeError: it is gone, or cannot be decoded.
          ReadError: it could not be read for longer than allowed.
        """
        if not self.config.cache:
            return self._resized(index)
        image_index = self.source.image_index(index)
        with _CACHE_LOCKS[image_index % len(_CACHE_LOCKS)]:
            if image_index not in self._cache:
                self._cache[image_index] = self._resized(index)
            return self._cache[image_index]

    def whole(self, index: int) -> tuple[UInt8[np.ndarray, "h w 3"], int]:
        """The image of a sample in its own size, and its label.

        Raises:
          ImageDecodeError, ReadError: as `resized`.
        """
        image, label = self._decoded(index)
        return np.asarray(image), label

    def cut(self, index: int, place: transforms.Place) -> tuple[UInt8[np.ndarray, "s s 3"], int]:
        """A square of `resized`, of which only that square is computed where the configuration permits, and the label.

        Raises:
          ImageDecodeError, ReadError: as `resized`.
        """
        size, convention = self.config.image_size, self.config.resize
        if self.config.cache:
            whole, label = self.resized(index)
            return transforms.crop(whole, size, place), label
        image, label = self._decoded(index)
        if isinstance(image, Image.Image) and (convention == "cv2" or self.config.resize_crop_only):
            return transforms.resize_pillow_crop(image, size, convention, place), label
        return transforms.crop(self._whole(image), size, place), label

    def _whole(self, image: Image.Image | UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "H W 3"]:
        resize: Any = transforms.resize_pillow_image if isinstance(image, Image.Image) else transforms.resize_short_side
        return resize(image, self.config.image_size, self.config.resize)

    def _resized(self, index: int) -> tuple[UInt8[np.ndarray, "h w 3"], int]:
        image, label = self._decoded(index)
        return self._whole(image), label

    def _decoded(self, index: int) -> tuple[Image.Image | UInt8[np.ndarray, "h w 3"], int]:
        image, label = self._patiently(index, lambda: self.source.read(index))
        if not isinstance(image, bytes):
            self._check_shape(index, *image.shape[:2])
            return image, label
        reduced = self.config.image_size if self.config.reduced_jpeg_decode and self.config.resize != "none" else None
        decoded = open_image(
            image, name=self.source.key(index), exif_rotate=self.config.exif_rotate, short_side=reduced
        )
        self._check_shape(index, decoded.height, decoded.width)
        return decoded, label

    def _patiently(self, index: int, read: Callable[[], T]) -> T:
        """Read a sample. A missing sample counts as bad; a store that does not answer does not."""

        def attempt() -> T:
            with folder_expected(self.source.folder(index)):
                return read()

        try:
            return self._patience.read(attempt, lambda: self.source.key(index))
        except OSError as error:
            raise ImageDecodeError(f"{self.source.key(index)}: cannot be read: {reason(error)}") from error

    def _check_shape(self, index: int, height: int, width: int) -> None:
        if max(height, width) > MAX_ASPECT * min(height, width):
            raise ImageDecodeError(
                f"{self.source.key(index)}: found {height}x{width} pixels, expected sides within a ratio of "
                f"{MAX_ASPECT}: resized, it would not fit into memory"
            )

    def fixed_view(self, index: int, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "s s 3"]:
        """The crop of validation, and of training without random crops."""
        return transforms.crop(image, self.config.image_size, self.fixed_place(index))

    def fixed_place(self, index: int) -> transforms.Place:
        """Return the position of that crop."""
        position = self.source.crop_position(index)
        return transforms.central(self.config.resize) if position is None else transforms.relative(position)

    def first_good(self, index: int, bad: list[BadImage], load: Callable[[int], T]) -> tuple[int, T]:
        """Index of the first sample from `index` on that loads, and what it loads as; appends the others to `bad`.

        Raises:
          TooManyBadImagesError: more than allowed do not.
        """
        while True:
            candidate = (index + len(bad)) % len(self.source)
            try:
                return candidate, load(candidate)
            except ImageDecodeError as error:
                bad.append(BadImage(candidate, str(error)))
                self.limit.check(bad)


class TrainSample(SampleLoader):
    """Sample index and random generator to a training sample; a bad image gives way to the next good one."""

    def __call__(self, index: int, generator: np.random.Generator) -> dict[str, Any]:
        """A sample as image bytes (s, s, 3), label, and the bad images met on the way to it."""
        bad: list[BadImage] = []
        place = transforms.random_place(generator) if self.config.crop == "random" else None
        _, (image, label) = self.first_good(
            index, bad, lambda candidate: self.cut(candidate, place or self.fixed_place(candidate))
        )
        if self.config.flip:
            image = transforms.random_flip(image, generator)
        return {"image": image, "label": label, "bad": bad}


class ValidationRow(SampleLoader):
    """Turn a position of the evaluation order into a row; positions past the end and bad images have mask 0."""

    def __init__(self, source: ImageSource, config: DataConfig, count: int):
        super().__init__(source, config)
        self._count = count

    def __call__(self, rank: int) -> dict[str, Any]:
        """A row as image bytes (s, s, 3), label, mask, the bad images: one or none, and its number in the source."""
        size = self.config.image_size
        row = {"image": np.full((size, size, 3), 128, np.uint8), "label": 0, "mask": 0.0, "bad": [], "number": -1}
        if rank >= self._count:
            return row
        index = self.source.evaluation_index(rank)
        try:
            image, label = self.resized(index)
        except ImageDecodeError as error:
            return row | {"bad": [BadImage(index, str(error))]}
        return row | {"image": self.fixed_view(index, image), "label": label, "mask": 1.0, "number": index}
