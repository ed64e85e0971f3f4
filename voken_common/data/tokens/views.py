"""Views of the samples of a data set that is encoded; they are sent to worker processes.

Shape letters: B batch, s side of the images or frames, T frames of a window.
"""

from __future__ import annotations

import abc
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from voken_common.config.schema.data import DataConfig
from voken_common.config.schema.video import latent_frames
from voken_common.data import transforms
from voken_common.data.clips import ClipLoader
from voken_common.data.errors import ImageDecodeError
from voken_common.data.images import SampleLoader
from voken_common.data.sources.base import ImageSource
from voken_common.data.sources.folder import FileSource


class Row(NamedTuple):
    """Fields of a record besides its ids.

    Attributes:
        key: of the image or video, below the source's folder.
        label: its class.
        crop: number of the view of an image, or of the window of a video.
        times: of a window, when its frames are shown, in seconds.
    """

    key: str
    label: int
    crop: int
    times: tuple[float, ...] | None = None


class Views(abc.ABC):
    """Samples by number.

    Attributes:
        count: of samples.
        shape: of what the network sees of one, (s, s, 3) or (T, s, s, 3).
        grid: of its tokens.
    """

    count: int
    shape: tuple[int, ...]
    grid: tuple[int, ...]

    def __init__(self, source: ImageSource, batch_size: int):
        self._source, self._batch_size = source, batch_size

    def batch(self, samples: range) -> dict[str, Any]:
        """Pixels as bytes (B, ...), grey where there are none, and per sample a row, or the reason why not."""
        pixels = np.full((self._batch_size, *self.shape), 128, np.uint8)
        rows: list[Row | str] = []
        for place, sample in enumerate(samples):
            try:
                pixels[place], row = self.view(sample)
                rows.append(row)
            except ImageDecodeError as error:
                rows.append(str(error))
        return {"pixels": pixels, "rows": rows}

    @abc.abstractmethod
    def index(self, sample: int) -> int:
        """Return the number of the image or video that a sample belongs to."""

    @abc.abstractmethod
    def view(self, sample: int) -> tuple[UInt8[np.ndarray, "*S 3"], Row]:
        """One sample.

        Raises:
          ImageDecodeError: it cannot be decoded.
        """

    def key(self, index: int) -> str:
        """Return the key of an image: its path below the source's folder, which the shards outlive."""
        key = self._source.key(index)
        if isinstance(self._source, FileSource):
            path = Path(key)
            return path.relative_to(self._source.root).as_posix() if path.is_relative_to(self._source.root) else key
        return key


class ImageViews(Views):
    """Sample i is crop i % crops of image i // crops; the first crop is that of validation."""

    def __init__(
        self, source: ImageSource, data: DataConfig, downsampling: int, *, crops: int, seed: int, batch_size: int
    ):
        super().__init__(source, batch_size)
        size = data.image_size
        self.count, self.shape = len(source) * crops, (size, size, 3)
        self.grid = (size // downsampling, size // downsampling)
        self._data, self._crops, self._seed = data, crops, seed
        self._loader = SampleLoader(source, data)

    def index(self, sample: int) -> int:
        """The image."""
        return sample // self._crops

    def view(self, sample: int) -> tuple[UInt8[np.ndarray, "s s 3"], Row]:
        """The fixed view of an image, or a random crop that its number decides."""
        index, crop = divmod(sample, self._crops)
        image, label = self._loader.resized(index)
        return self._cut(index, crop, image), Row(self.key(index), label, crop)

    def _cut(self, index: int, crop: int, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "s s 3"]:
        if crop == 0:
            return self._loader.fixed_view(index, image)
        generator = np.random.default_rng([self._seed, index, crop])
        image = transforms.random_crop(image, self._data.image_size, generator)
        return transforms.random_flip(image, generator) if self._data.flip else image


class VideoViews(Views):
    """Samples are the consecutive windows of all videos; a video that cannot be read is one sample without a view."""

    def __init__(
        self, source: ImageSource, data: DataConfig, downsampling: int, time_downsampling: int, *, batch_size: int
    ):
        super().__init__(source, batch_size)
        self._loader = ClipLoader(source, data)
        self._size, self._frames = data.image_size, self._loader.videos.config.frames
        self.shape = (self._frames, self._size, self._size, 3)
        side = self._size // downsampling
        self.grid = (latent_frames(self._frames, time_downsampling), side, side)
        windows = [self._loader.windows(index) for index in range(len(source))]
        self._ends = np.cumsum(windows)
        self.count = int(self._ends[-1])

    def index(self, sample: int) -> int:
        """The video."""
        return int(np.searchsorted(self._ends, sample, side="right"))

    def view(self, sample: int) -> tuple[UInt8[np.ndarray, "T s s 3"], Row]:
        """A window; the last frame of a video is repeated where it ends before the window does."""
        index = self.index(sample)
        number = sample - (int(self._ends[index - 1]) if index else 0)
        frames, times = self._loader.window(index, number)
        count = len(frames)
        clip = np.stack(frames + [frames[-1]] * (self._frames - count))
        clip = transforms.center_crop(clip, self._size, self._loader.config.resize)
        label = self._loader.videos.label(index)
        return clip, Row(self.key(index), label, number, times)
