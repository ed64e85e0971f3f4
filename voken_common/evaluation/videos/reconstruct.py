"""Video files through a tokenizer window by window, and what is written of them; `voken reconstruct` on videos.

Memory is flat in the length of a video: one window of frames is held at a time, and everything is written as it comes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Int, UInt8
from tqdm import tqdm

from voken_common.atomic_write import replacing
from voken_common.config.schema.tokenizer import Config
from voken_common.data.errors import ImageDecodeError
from voken_common.data.sources.video import VIDEO_SUFFIXES
from voken_common.data.video.reading import Frame, VideoStream
from voken_common.data.video.windows import CrossFade, Cutting, WindowCoder, windows_of
from voken_common.data.video.writing import VideoWriter
from voken_common.metrics import psnr
from voken_common.pixels import from_uint8, to_uint8
from voken_common.visual import grid, save_png

logger = logging.getLogger("voken")

STRIP_FRAMES = 8


class VideoTokenizer(Protocol):
    """The part of a tokenizer that is used: clips (B, T, H, W, 3) in [-1, 1], ids (B, t, h, w), NumPy arrays."""

    config: Config
    downsampling: int
    time_downsampling: int
    encode: Callable[[Float[np.ndarray, "B T H W 3"]], Int[np.ndarray, "B t h w"]]
    decode: Callable[[Int[np.ndarray, "B t h w"]], Float[np.ndarray, "B T H W 3"]]


def find_videos(path: Path) -> list[Path]:
    """The video itself, or every video below a folder, sorted.

    Raises:
        FileNotFoundError: nothing there, or no video in the folder.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"--input {path}: no such file or folder")
    videos = sorted(p for p in path.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES and p.is_file())
    if not videos:
        raise FileNotFoundError(f"--input {path}: no video in it; looked for {', '.join(VIDEO_SUFFIXES)}")
    return videos


def reconstruct_videos(
    tokenizer: VideoTokenizer, paths: list[Path], names: dict[Path, str], output: Path, cutting: Cutting
) -> dict[str, float]:
    """Encode and decode videos of any length and size.

    Writes of each `NAME.reconstruction.mp4` (with the sound where MP4 takes it), `NAME.side_by_side.mp4`,
    `NAME.strip.png`, `NAME.ids.npz` and `NAME.psnr.json`. A video that cannot be read is reported and passed over.

    Args:
        tokenizer: of videos.
        paths: the files.
        names: what to call what is made of each.
        output: folder to write to.
        cutting: windows and tiles.

    Returns:
        mean PSNR in dB over the frames of each video, by name.

    Raises:
        ImageDecodeError: none of the videos can be read.
        ValueError: a cutting that does not fit the tokenizer.
    """
    coder = WindowCoder(
        tokenizer.encode, tokenizer.decode, tokenizer.downsampling, tokenizer.time_downsampling, cutting
    )
    values: dict[str, float] = {}
    refused: list[str] = []
    for path in tqdm(paths, unit="video", disable=len(paths) < 2):
        try:
            values[names[path]] = _reconstruct(coder, path, output / names[path], cutting)
        except ImageDecodeError as error:
            refused.append(str(error))
            logger.warning("left out: %s", error)
    if not values:
        raise ImageDecodeError("none of the videos can be read: " + "; ".join(refused))
    return values


def _reconstruct(coder: WindowCoder, path: Path, output: Path, cutting: Cutting) -> float:
    stream = VideoStream(path)
    info = stream.info
    colours: dict[str, Any] = {"full_range": info.full_range, "wide_colours": info.wide_colours}
    sound = str(path) if info.has_audio else None
    output.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        target = Path(f"{output}.reconstruction.mp4")
        result = stack.enter_context(VideoWriter(target, rate=info.rate, sound_of=sound, **colours))
        both = stack.enter_context(VideoWriter(f"{output}.side_by_side.mp4", rate=info.rate, **colours))
        ids = stack.enter_context(IdsFile(Path(f"{output}.ids.npz")))
        measured, strip = _Measured(), _Strip()
        for frame, pixels in _frames(coder, stream, cutting, ids):
            result.write(pixels, frame.time)
            both.write(_beside(frame.pixels, pixels), frame.time)
            measured.add(frame, pixels)
            strip.add(frame.pixels, pixels)
    if result.without_sound:
        logger.warning("%s", result.without_sound)
    if stream.damage:
        logger.warning("damaged, the rest is left out: %s", stream.damage)
    save_png(f"{output}.strip.png", strip.picture())
    return measured.write(Path(f"{output}.psnr.json"), stream.damage)


def _frames(
    coder: WindowCoder, stream: VideoStream, cutting: Cutting, ids: IdsFile
) -> Iterator[tuple[Frame, UInt8[np.ndarray, "H W 3"]]]:
    """Frames of a video, each with its reconstruction."""
    fade, waiting = CrossFade(cutting.fade), []
    size: tuple[int, ...] | None = None
    old = 0
    for window in windows_of(stream, cutting):
        waiting += window[old:]
        old = cutting.fade
        size = size or window[0].pixels.shape
        if any(frame.pixels.shape != size for frame in window):
            raise ImageDecodeError(f"{stream.path}: its frames change their size")
        tokens = coder.encode(from_uint8(np.stack([frame.pixels for frame in window])))
        ids.add(tokens, [float(frame.time) for frame in window])
        for pixels in fade.join(coder.decode(tokens)):
            yield waiting.pop(0), to_uint8(pixels)
    for pixels in fade.flush():
        yield waiting.pop(0), to_uint8(pixels)


def _beside(left: UInt8[np.ndarray, "H W 3"], right: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W2 3"]:
    pair = np.concatenate([left, right], axis=1)
    return np.pad(pair, ((0, pair.shape[0] % 2), (0, 0), (0, 0)), mode="edge")


class IdsFile:
    """An `.npz` that grows by a window: `ids_00000` (tiles, t, p, q), `times_00000`, and once `tops`, `lefts`, `size`.

    It appears whole when it is closed without an error, or not at all.
    """

    def __init__(self, path: Path):
        self._path, self._count = path, 0

    def __enter__(self) -> IdsFile:
        self._stack = contextlib.ExitStack()
        file = self._stack.enter_context(replacing(self._path))
        self._zip = self._stack.enter_context(zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, allowZip64=True))
        return self

    def add(self, tokens: Any, times: list[float]) -> None:
        """The tokens of the next window, and the times of its frames in seconds."""
        if not self._count:
            for name in ("tops", "lefts", "size"):
                self._write(name, np.asarray(getattr(tokens, name)))
        self._write(f"ids_{self._count:05d}", tokens.ids)
        self._write(f"times_{self._count:05d}", np.asarray(times))
        self._count += 1

    def _write(self, name: str, array: np.ndarray) -> None:
        with self._zip.open(f"{name}.npy", "w", force_zip64=True) as entry:
            np.lib.format.write_array(entry, np.ascontiguousarray(array), allow_pickle=False)

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)


class _Measured:
    """PSNR per frame."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.values: list[float] = []

    def add(self, frame: Frame, pixels: UInt8[np.ndarray, "H W 3"]) -> None:
        self.times.append(round(float(frame.time), 6))
        self.values.append(float(psnr(from_uint8(frame.pixels)[None], from_uint8(pixels)[None])[0]))

    def write(self, path: Path, damage: str) -> float:
        mean = float(np.mean(self.values))
        found = {"mean": mean, "frames": self.values, "times": self.times, "damage": damage}
        with replacing(path) as file:
            file.write(json.dumps(found, indent=1).encode())
        return mean


class _Strip:
    """A few frames spread over a video whose length is not known before its end."""

    def __init__(self) -> None:
        self._kept: list[tuple[np.ndarray, np.ndarray]] = []
        self._every, self._seen = 1, 0

    def add(self, original: np.ndarray, pixels: np.ndarray) -> None:
        if self._seen % self._every == 0:
            self._kept.append((original, pixels))
            if len(self._kept) == 2 * STRIP_FRAMES:
                self._kept, self._every = self._kept[::2], 2 * self._every
        self._seen += 1

    def picture(self) -> UInt8[np.ndarray, "h w 3"]:
        """Frames above, their reconstructions below."""
        chosen = np.unique(np.linspace(0, len(self._kept) - 1, min(STRIP_FRAMES, len(self._kept))).round().astype(int))
        originals, results = zip(*(self._kept[i] for i in chosen), strict=True)
        return grid([*originals, *results], columns=len(chosen))
