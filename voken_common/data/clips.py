"""From a video of a source to the clip that the network sees, one at a time and without Grain.

Shape letters: t = frames of a clip, h w = any height and width, s = side of the square that the network sees.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import UInt8

from voken_common.config.schema.data import DataConfig
from voken_common.data import transforms
from voken_common.data.bad_images import BadImage
from voken_common.data.decode import MAX_ASPECT
from voken_common.data.errors import ImageDecodeError
from voken_common.data.images import SampleLoader
from voken_common.data.sources.base import ImageSource
from voken_common.data.sources.video import ClipReader, VideoFolder


class ClipLoader(SampleLoader):
    """Reads and resizes clips: consecutive frames of a video, or every `stride`-th one."""

    medium = "video"

    def __init__(self, source: ImageSource, config: DataConfig):
        super().__init__(source, config)
        assert isinstance(source, VideoFolder)
        self.videos = source
        self._frames, self._stride = source.config.frames, source.config.stride
        self._reader = ClipReader(source.config.upright, source.config.fps)

    @property
    def bytes_per_sample(self) -> int:
        """Dtype of the pixels that worker processes send."""
        return super().bytes_per_sample * self._frames

    @property
    def span(self) -> int:
        """Frames from the first of a clip to its last, both counted."""
        return (self._frames - 1) * self._stride + 1

    def clip(self, index: int, place: float | None) -> list[UInt8[np.ndarray, "h w 3"]]:
        """Resize the frames of a clip.

        Args:
          index: of the video.
          place: from 0, the first possible start, to under 1, the last one; None: len // 2 - span // 2, in the middle.

        Raises:
          ImageDecodeError: the video is gone or damaged, or too short where short ones are refused.
          ReadError: it could not be read for longer than allowed.
        """
        path = self.videos.key(index)
        length = self._length(index)
        if length < self.span and self.videos.config.short == "refuse":
            raise ImageDecodeError(
                f"{path}: found {length} frames, a clip needs {self.span}; `short: repeat` starts such videos again "
                "from their first frame"
            )
        if length < self.span:
            start = 0
        elif place is None:
            start = length // 2 - self.span // 2
        else:
            start = int(place * (length - self.span + 1))
        numbers = [start + self._stride * i for i in range(self._frames)]
        distinct = sorted({number % length for number in numbers})
        decoded = self._patiently(index, lambda: self._reader.read(path, distinct))
        frames = dict(zip(distinct, decoded, strict=True))
        self._check_frames(path, list(frames.values()))
        resized = {number: self._resize(frame) for number, frame in frames.items()}
        return [resized[number % length] for number in numbers]

    def windows(self, index: int) -> int:
        """Consecutive windows of a video, the last of which may be short; 1 where it cannot be read."""
        try:
            return -(-self._length(index) // (self._frames * self._stride))
        except ImageDecodeError:
            return 1

    def window(self, index: int, number: int) -> tuple[list[UInt8[np.ndarray, "h w 3"]], tuple[float, ...]]:
        """The resized frames of a window, at most as many as a clip has, and their times in seconds.

        Raises:
          ImageDecodeError: the video is gone or damaged.
          ReadError: it could not be read for longer than allowed.
        """
        path = self.videos.key(index)
        first = number * self._frames * self._stride
        last = min(first + self._frames * self._stride, self._length(index))
        numbers = list(range(first, last, self._stride))
        decoded = self._patiently(index, lambda: self._reader.read(path, numbers))
        self._check_frames(path, decoded)
        return [self._resize(frame) for frame in decoded], tuple(self._reader.times(path, numbers))

    def _length(self, index: int) -> int:
        path = self.videos.key(index)
        return self._patiently(index, lambda: self._reader.frames(path))

    def _check_frames(self, path: str, frames: list[UInt8[np.ndarray, "h w 3"]]) -> None:
        shapes = {frame.shape for frame in frames}
        if len(shapes) > 1:
            raise ImageDecodeError(f"{path}: its frames change their size within the clip: {sorted(shapes)}")
        height, width = frames[0].shape[:2]
        if max(height, width) > MAX_ASPECT * min(height, width):
            raise ImageDecodeError(f"{path}: found {height}x{width} pixels, expected sides within {MAX_ASPECT}:1")

    def _resize(self, frame: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """Resize as for images, but `cv2` truncates the longer side, as the published video tokenizers do."""
        if self.config.resize == "cv2":
            height, width = frame.shape[:2]
            short = min(height, width)
            sides = [int(self.config.image_size * side / short) for side in (height, width)]
            return transforms.resize_bilinear_cv2(frame, *sides)
        return transforms.resize_short_side(frame, self.config.image_size, self.config.resize)


class TrainClip(ClipLoader):
    """Video index and random generator to a training clip; a bad video gives way to the next good one."""

    def __call__(self, index: int, generator: np.random.Generator) -> dict[str, Any]:
        """A clip as bytes (t, s, s, 3), label, and the bad videos met on the way to it."""
        bad: list[BadImage] = []
        place = generator.random()
        candidate, clip = self.first_good(index, bad, lambda video: np.stack(self.clip(video, place)))
        size = self.config.image_size
        if self.config.crop == "random":
            clip = transforms.random_crop(clip, size, generator)
        else:
            clip = transforms.center_crop(clip, size, self.config.resize)
        if self.config.flip:
            clip = transforms.random_flip(clip, generator)
        return {"video": clip, "label": self.videos.label(candidate), "bad": bad}


class ValidationClip(ClipLoader):
    """Turn a position of the evaluation order into a row: the middle clip; padding and bad videos have mask 0."""

    def __init__(self, source: ImageSource, config: DataConfig, count: int):
        super().__init__(source, config)
        self._count = count

    def __call__(self, rank: int) -> dict[str, Any]:
        """A row as clip bytes (t, s, s, 3), label, mask, and the bad videos: one or none."""
        size = self.config.image_size
        video = np.full((self._frames, size, size, 3), 128, np.uint8)
        row = {"video": video, "label": 0, "mask": 0.0, "bad": []}
        if rank >= self._count:
            return row
        index = self.source.evaluation_index(rank)
        try:
            frames = np.stack(self.clip(index, None))
        except ImageDecodeError as error:
            return row | {"bad": [BadImage(index, str(error))]}
        clip = transforms.center_crop(frames, size, self.config.resize)
        return row | {"video": clip, "label": self.videos.label(index), "mask": 1.0}
