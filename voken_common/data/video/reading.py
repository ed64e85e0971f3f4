"""A video file as a stream of upright RGB frames with their times; never more than one frame in memory.

Shape letters: h w = height and width as shown.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from voken_common.data.errors import ImageDecodeError
from voken_common.data.sources.video import open_video, pixels_of, video_damage

_USUAL_RATE = Fraction(25)


@dataclasses.dataclass(frozen=True)
class Frame:
    """One frame.

    Attributes:
        pixels: upright, RGB, full range.
        time: seconds after the first frame of the video.
    """

    pixels: UInt8[np.ndarray, "h w 3"]
    time: Fraction


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """Description of a file's video, read before any frame is decoded.

    Attributes:
        rate: average frames per second; 25 where the file does not say.
        rotation: degrees by which stored frames are turned counterclockwise to stand upright: 0, 90, 180 or 270.
        full_range: colours are stored from 0 to 255 (JPEG) instead of 16 to 235 (MPEG).
        wide_colours: colours are stored by BT.709 instead of BT.601.
        has_audio: there is sound.
    """

    rate: Fraction
    rotation: int
    full_range: bool
    wide_colours: bool
    has_audio: bool


class VideoStream:
    """The frames of a file, in the order in which they are shown; may be iterated more than once.

    Frames without a time stamp follow one another at the average rate. Frames are turned upright as players do it.
    The rest of a damaged video is left out, and `damage` says so afterwards.

    Raises:
        ImageDecodeError: no video that decodes, such as a file with sound alone.
        OSError: the file cannot be read.
    """

    def __init__(self, path: str | Path):
        self.path, self.damage = str(path), ""
        self.info, self._first = self._probe()

    def _probe(self) -> tuple[VideoInfo, Any]:
        try:
            container, stream = open_video(self.path)
            with container:
                first = next(iter(container.decode(stream)), None)
                if first is None:
                    raise ImageDecodeError(f"{self.path}: it has no frames")
                rate = stream.average_rate or stream.guessed_rate or _USUAL_RATE
                codes = getattr(first, "color_range", 0), getattr(first, "colorspace", 0)
                info = VideoInfo(
                    rate=Fraction(rate),
                    rotation=round(float(first.rotation) / 90) * 90 % 360,
                    full_range=int(codes[0] or 0) == 2 or first.format.name.startswith("yuvj"),
                    wide_colours=int(codes[1] or 0) == 1,
                    has_audio=bool(container.streams.audio),
                )
                return info, first.pts
        except Exception as error:
            raise video_damage(self.path, error) from error

    def __iter__(self) -> Iterator[Frame]:
        container, stream = open_video(self.path)
        zero: Fraction | None = None
        last = Fraction(-1)
        count = 0
        self.damage = ""
        with container:
            frames = iter(container.decode(stream))
            while True:
                try:
                    frame = next(frames)
                    pixels = pixels_of(frame, upright=True)
                except StopIteration:
                    return
                except Exception as error:
                    # What decoded so far has been handed out already.
                    self.damage = f"{video_damage(self.path, error)} (after {count} frames)"
                    return
                time = None if frame.pts is None else frame.pts * Fraction(frame.time_base)
                zero = time if zero is None and time is not None else zero
                time = count / self.info.rate if time is None or zero is None else time - zero
                # Time stamps that stand still or go back would be refused by every container.
                time = time if time > last else last + 1 / self.info.rate
                last = time
                count += 1
                yield Frame(pixels, time)
