"""Frames to an H.264 MP4, with the sound of another file copied beside them where the container takes it.

Shape letters: h w = height and width.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import UInt8

from voken_common.untrusted.videos import open_container

_TIME_BASE = Fraction(1, 90_000)
_PRIMING = Fraction(1, 10)
"""Sound that may lie before the first frame, in seconds: encoders of sound begin with some that is not played."""
_BT709, _BT601 = 1, 5
_MPEG, _JPEG = 1, 2


class VideoWriter:
    """Writes frames as they come; the file appears whole when it is closed without an error, or not at all.

    Sides that are odd are kept: such a video is stored with a colour per pixel (yuv444p), which browsers may not play.

    Args:
        path: `.mp4`; folders are created.
        rate: average frames per second.
        full_range: store colours from 0 to 255 instead of 16 to 235.
        wide_colours: store colours by BT.709 instead of BT.601.
        sound_of: a file whose sound is copied, packet by packet, without decoding it; None: no sound.
        quality: constant rate factor of H.264, 0 (lossless) to 51.

    Attributes:
        without_sound: why there is no sound although there should be; empty if all is well.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        rate: Fraction,
        full_range: bool = False,
        wide_colours: bool = False,
        sound_of: str | None = None,
        quality: int = 17,
    ):
        self.path, self.without_sound = Path(path), ""
        self._rate, self._range = rate, _JPEG if full_range else _MPEG
        self._colours = _BT709 if wide_colours else _BT601
        self._quality, self._sound_of = quality, sound_of
        self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        self._container: Any = None
        self._stream: Any = None
        self._sound: _Sound | None = None

    def __enter__(self) -> VideoWriter:
        return self

    def write(self, pixels: UInt8[np.ndarray, "h w 3"], time: Fraction) -> None:
        """One frame, shown `time` seconds after the start; times ascend."""
        import av

        if self._container is None:
            self._open(*pixels.shape[:2])
        rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame = rgb.reformat(
            format=self._stream.pix_fmt,
            dst_colorspace=self._colours,
            dst_color_range=self._range,
            src_color_range=_JPEG,
        )
        frame.pts, frame.time_base = round(time / _TIME_BASE), _TIME_BASE
        self._container.mux(self._stream.encode(frame))
        if self._sound:
            self._container.mux(self._sound.until(time))

    def _open(self, height: int, width: int) -> None:
        import av

        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(self._temporary), "w", format="mp4", options={"movflags": "+faststart"})
        stream = self._container.add_stream("libx264", rate=self._rate.limit_denominator(1_000_000))
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv444p" if height % 2 or width % 2 else "yuv420p"
        stream.options = {"crf": str(self._quality), "preset": "veryfast"}
        stream.codec_context.time_base = stream.time_base = _TIME_BASE
        stream.codec_context.color_range = self._range
        stream.codec_context.colorspace = self._colours
        self._stream = stream
        if self._sound_of is not None:
            try:
                self._sound = _Sound(self._sound_of, self._container)
            except (ValueError, OSError, av.error.FFmpegError) as error:
                self.without_sound = f"the sound of {self._sound_of} cannot be copied into MP4: {error}"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._container is None:
            return
        try:
            if kind is None:
                self._container.mux(self._stream.encode())
                if self._sound:
                    self._container.mux(self._sound.until(None))
            if self._sound:
                self._sound.close()
            self._container.close()
            if kind is None:
                os.replace(self._temporary, self.path)
        finally:
            self._temporary.unlink(missing_ok=True)


class _Sound:
    """Packets of another file's first audio stream, as they become due."""

    def __init__(self, path: str, container: Any):
        self._source = open_container(path)
        audio = self._source.streams.audio[0]
        if audio.codec_context.name not in container.supported_codecs:
            self._source.close()
            raise ValueError(f"MP4 does not take {audio.codec_context.name}")
        video = self._source.streams.video
        self._shift = Fraction(0)
        if video and video[0].start_time is not None and video[0].time_base is not None:
            self._shift = video[0].start_time * Fraction(video[0].time_base)
        self._out = container.add_stream_from_template(audio)
        self._base = Fraction(audio.time_base or _TIME_BASE)
        self._packets = self._source.demux(audio)
        self._waiting: Any = None

    def until(self, time: Fraction | None) -> Iterator[Any]:
        """The packets of sound up to a time of the video; None: all that are left."""
        while True:
            packet = self._waiting or next(self._packets, None)
            self._waiting = None
            if packet is None:
                return
            if packet.dts is None or packet.pts is None:
                continue
            if time is not None and packet.dts * self._base - self._shift > time:
                self._waiting = packet
                return
            moved = round(self._shift / self._base)
            packet.pts, packet.dts, packet.stream = packet.pts - moved, packet.dts - moved, self._out
            if packet.pts * self._base >= -_PRIMING:
                yield packet

    def close(self) -> None:
        """Release the file."""
        self._source.close()
