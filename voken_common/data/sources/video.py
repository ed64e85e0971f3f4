"""Folders of videos, and single clips out of them by frame number, through PyAV.

Which frames a video has is read off its packets, not its header, which may lie or say nothing; a frame is found by its
time stamp after a seek to the key frame before it. Where that does not work out, the video is decoded from its start.

Shape letters: t = frames of a clip, h w = height and width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import UInt8

from voken_common.config.schema.data import VideoFolderConfig
from voken_common.data.errors import DataError, ImageDecodeError
from voken_common.data.sources.folder import MediaFolder
from voken_common.data.sources.listing import Medium
from voken_common.untrusted.videos import open_container

VIDEO_SUFFIXES = (".mp4", ".avi", ".webm", ".mkv", ".mov", ".m4v")

_EXPECTED_TREE = """\
  {root}/                      or   {root}/
    ApplyEyeMakeup/                   first.mp4
      v_ApplyEyeMakeup_g01_c01.avi    second.webm
    ApplyLipstick/                    ...
      ...                           (flat: one class)
  (one folder per class)"""
_KNOWN_VIDEOS = 4096
_BLOCK = 1 << 20


class VideoFolder(MediaFolder):
    """A folder of videos in classes or flat; a sample is a video, of which loaders take a clip.

    Raises:
      DataError: PyAV is not installed; there is no such folder, or no videos in it.
    """

    medium = Medium("video", VIDEO_SUFFIXES, _EXPECTED_TREE)

    def __init__(self, config: VideoFolderConfig):
        try:
            import av as av
        except ImportError as error:
            raise DataError("reading videos needs PyAV, which is not installed: pip install 'voken[data]'") from error
        super().__init__(config.path, exclude=config.exclude, list_cache=config.list_cache)
        self.config = config

    def label(self, index: int) -> int:
        """Class of a video."""
        return int(self._labels[index])


class ClipReader:
    """Reads clips of videos; remembers the time stamps of videos it met, so that only the first clip costs a scan.

    Args:
      upright: turn frames as their display matrix says; otherwise they stay as they are stored.
      fps: number the frames that are shown at this rate, instead of the video's own.
    """

    def __init__(self, upright: bool = True, fps: float | None = None) -> None:
        self._upright, self._fps = upright, fps
        self._times: dict[str, list[int] | int] = {}
        self._resampled: dict[str, list[int]] = {}

    def frames(self, path: str) -> int:
        """Number of frames of a video.

        Raises:
          OSError: the file cannot be read.
          ImageDecodeError: it is no video, or a damaged one.
        """
        if self._fps is not None:
            return len(self._shown(path))
        known = self._timeline(path)
        return known if isinstance(known, int) else len(known)

    def read(self, path: str, numbers: list[int]) -> list[UInt8[np.ndarray, "h w 3"]]:
        """The frames of these numbers, which do not descend.

        Raises:
          OSError: the file cannot be read.
          ImageDecodeError: the video is damaged or has fewer frames.
        """
        if self._fps is not None:
            numbers = [self._shown(path)[number] for number in numbers]
        distinct = sorted(set(numbers))
        frames = dict(zip(distinct, self._read(path, distinct), strict=True))
        return [frames[number] for number in numbers]

    def _read(self, path: str, numbers: list[int]) -> list[UInt8[np.ndarray, "h w 3"]]:
        known = self._timeline(path)
        try:
            if isinstance(known, list):
                wanted = [known[number] for number in numbers]
                if (found := _by_time(path, wanted, self._upright)) is not None:
                    return found
            return _by_number(path, numbers, self._upright)
        except Exception as error:
            raise video_damage(path, error) from error

    def times(self, path: str, numbers: list[int]) -> list[float]:
        """Seconds from the first frame of a video to each of these frames.

        Raises:
          OSError: the file cannot be read.
          ImageDecodeError: it is no video, or a damaged one.
        """
        if self._fps is not None:
            return [round(number / self._fps, 6) for number in numbers]
        return self._own_times(path, numbers)

    def _shown(self, path: str) -> list[int]:
        """The video's own frame that is shown at each time k / fps, up to its last frame."""
        assert self._fps is not None
        if path not in self._resampled:
            if len(self._resampled) >= _KNOWN_VIDEOS:
                self._resampled.pop(next(iter(self._resampled)))
            known = self._timeline(path)
            times = np.asarray(self._own_times(path, list(range(known if isinstance(known, int) else len(known)))))
            wanted = np.arange(int(times[-1] * self._fps + 1e-6) + 1) / self._fps
            self._resampled[path] = (np.searchsorted(times, wanted + 1e-6, side="right") - 1).tolist()
        return self._resampled[path]

    def _own_times(self, path: str, numbers: list[int]) -> list[float]:
        known = self._timeline(path)
        try:
            container, stream = open_video(path)
            with container:
                rate = float(stream.average_rate or stream.guessed_rate or 25)
                base = float(stream.time_base or 0)
        except Exception as error:
            raise video_damage(path, error) from error
        if isinstance(known, int) or not base:
            return [round(number / rate, 6) for number in numbers]
        return [round((known[number] - known[0]) * base, 6) for number in numbers]

    def _timeline(self, path: str) -> list[int] | int:
        """Time stamps of the frames in the order in which they are shown, or only their number if they have none."""
        if path not in self._times:
            if len(self._times) >= _KNOWN_VIDEOS:
                self._times.pop(next(iter(self._times)))
            try:
                self._times[path] = _scan(path)
            except Exception as error:
                raise video_damage(path, error) from error
        return self._times[path]


def open_video(path: str) -> tuple[Any, Any]:
    """Container and first video stream of a file; the container is to be closed.

    Raises:
      ImageDecodeError: it has no video.
      FFmpegError: it cannot be opened.
    """
    container = open_container(path)
    if not container.streams.video:
        container.close()
        raise ImageDecodeError(f"{path}: it has no video stream")
    stream = container.streams.video[0]
    # Worker processes share the cores already.
    stream.thread_type = "NONE"
    return container, stream


def _scan(path: str) -> list[int] | int:
    container, stream = open_video(path)
    with container:
        packets = [(packet.pts, packet.is_discard) for packet in container.demux(stream) if packet.size]
    if not packets:
        raise ImageDecodeError(f"{path}: it has no frames")
    times = sorted(time for time, discarded in packets if time is not None and not discarded)
    if len(times) == len(packets) == len(set(times)):
        return times
    container, stream = open_video(path)
    with container:
        return sum(1 for _ in container.decode(stream))


def pixels_of(frame: Any, upright: bool) -> UInt8[np.ndarray, "h w 3"]:
    """RGB of a decoded frame; upright, it is turned by quarters as its display matrix says, as players do."""
    pixels: UInt8[np.ndarray, "h w 3"] = frame.to_ndarray(format="rgb24")
    quarters = round(float(frame.rotation) / 90) % 4 if upright else 0
    return np.ascontiguousarray(np.rot90(pixels, quarters)) if quarters else pixels


def _by_time(path: str, wanted: list[int], upright: bool) -> list[UInt8[np.ndarray, "h w 3"]] | None:
    """The frames with these time stamps; None if seeking does not lead to them."""
    container, stream = open_video(path)
    found: dict[int, UInt8[np.ndarray, "h w 3"]] = {}
    needed = set(wanted)
    with container:
        container.seek(wanted[0], stream=stream, backward=True)
        for frame in container.decode(stream):
            if frame.pts in needed:
                found[frame.pts] = pixels_of(frame, upright)
            if len(found) == len(needed) or frame.pts is None or frame.pts > wanted[-1]:
                break
    return [found[time] for time in wanted] if len(found) == len(needed) else None


def _by_number(path: str, numbers: list[int], upright: bool) -> list[UInt8[np.ndarray, "h w 3"]]:
    container, stream = open_video(path)
    found: dict[int, UInt8[np.ndarray, "h w 3"]] = {}
    needed = set(numbers)
    count = 0
    with container:
        for count, frame in enumerate(container.decode(stream), start=1):
            if count - 1 in needed:
                found[count - 1] = pixels_of(frame, upright)
            if len(found) == len(needed):
                return [found[number] for number in numbers]
    raise ImageDecodeError(f"{path}: only {count} frames decode, frame {numbers[-1]} was to be read")


def video_damage(path: str, error: Exception) -> ImageDecodeError:
    """Describe the fault of a video whose file as such can be read.

    As for images, damaged files make FFmpeg and PyAV raise nearly anything, input/output errors among it; and where
    reading fails, FFmpeg may see no more than an end that comes too early.

    Raises:
      OSError: the file cannot be read, which is what was wrong.
    """
    with open(path, "rb") as file:
        while file.read(_BLOCK):
            pass
    if isinstance(error, ImageDecodeError):
        return error
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return ImageDecodeError(f"{path}: not a video that decodes: {text}")
