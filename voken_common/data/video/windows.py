"""Videos of any length and size as windows of frames and tiles of pixels that a tokenizer can take, and back.

A window is what one call of the network sees of time: consecutive windows as published, or overlapping ones whose
frames are cross-faded. A tile is what it sees of a frame that is larger than fits: tiles overlap, and where they do
they are blended linearly. Both keep memory flat: one window of one video is held at a time.

Shape letters: T frames of a window, H W height and width of a frame, P Q those of a tile, C = 3, t p q of its tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Int

from voken_common.config.schema.video import WINDOW, latent_frames

Item = TypeVar("Item")
Encode = Callable[[Float[np.ndarray, "B T P Q C"]], Int[np.ndarray, "B t p q"]]
Decode = Callable[[Int[np.ndarray, "B t p q"]], Float[np.ndarray, "B T P Q C"]]


@dataclasses.dataclass(frozen=True)
class Cutting:
    """Settings of the cut of videos into windows.

    Attributes:
        window: frames per window.
        fade: frames that a window shares with the one before it, cross-faded; 0: consecutive windows, as published.
        tile: side of a tile in pixels, a multiple of the tokenizer's `downsampling`; frames no larger than that are
            seen whole. 0: always whole.
        blend: pixels that neighbouring tiles share at least, a multiple of `downsampling`.
    """

    window: int = WINDOW
    fade: int = 0
    tile: int = 256
    blend: int = 32

    def check(self, downsampling: int, time_downsampling: int) -> None:
        """Raise ValueError unless a tokenizer with these factors can work like that."""
        try:
            latent_frames(self.window, time_downsampling)
        except ValueError as error:
            raise ValueError(f"--window {self.window}: {error}") from None
        if not 0 <= self.fade < self.window:
            raise ValueError(f"--fade {self.fade}: expected 0 to {self.window - 1}, fewer frames than a window has")
        for name, value in (("tile", self.tile), ("blend", self.blend)):
            if value < 0 or value % downsampling:
                raise ValueError(f"--{name} {value}: expected a multiple of {downsampling}, the pixels per token")
        if self.tile and self.blend >= self.tile:
            raise ValueError(f"--blend {self.blend}: expected less than --tile {self.tile}")


def windows_of(items: Iterable[Item], cutting: Cutting) -> Iterator[list[Item]]:
    """Windows of a stream, each sharing `fade` items with the one before; the last may be shorter.

    Every item is new in exactly one window: the first holds `window` new ones, the others `window - fade`.
    """
    held: list[Item] = []
    new = 0
    for item in items:
        held.append(item)
        new += 1
        if len(held) == cutting.window:
            yield list(held)
            held, new = held[len(held) - cutting.fade :] if cutting.fade else [], 0
    if new:
        yield held


def padded_length(frames: int, time_downsampling: int) -> int:
    """The smallest number of frames that fits the tokenizer and holds these; the last frame is repeated to fill it."""
    return -(-(frames - 1) // time_downsampling) * time_downsampling + 1


def starts(side: int, tile: int, blend: int, downsampling: int) -> list[int]:
    """First pixels of the tiles along a side, evenly spread on whole tokens; one where the tile covers the side."""
    if not tile or side <= tile:
        return [0]
    count = -(-(side - blend) // (tile - blend))
    spread = [(side - tile) * i / (count - 1) for i in range(count)]
    return [round(first / downsampling) * downsampling for first in spread[:-1]] + [side - tile]


@dataclasses.dataclass(frozen=True)
class WindowTokens:
    """Tokens of one window.

    Attributes:
        ids: one array per tile, row by row.
        frames: real frames; what is decoded beyond them repeats the last one.
        size: height and width of the frames in pixels.
        tops, lefts: first pixels of the tiles along both sides, in the padded frame.
    """

    ids: Int[np.ndarray, "n t p q"]
    frames: int
    size: tuple[int, int]
    tops: tuple[int, ...]
    lefts: tuple[int, ...]


class WindowCoder:
    """A video tokenizer over windows of any size.

    Args:
        encode, decode: of the tokenizer, over NumPy arrays.
        downsampling, time_downsampling: of the tokenizer.
        cutting: how videos are cut.

    Raises:
        ValueError: a cutting that does not fit the tokenizer.
    """

    def __init__(self, encode: Encode, decode: Decode, downsampling: int, time_downsampling: int, cutting: Cutting):
        cutting.check(downsampling, time_downsampling)
        self._encode, self._decode, self.cutting = encode, decode, cutting
        self._factor, self._time = downsampling, time_downsampling

    def encode(self, frames: Float[np.ndarray, "T H W C"]) -> WindowTokens:
        """Tokens of a window of frames in [-1, 1]."""
        count, height, width = frames.shape[:3]
        # Repeated pixels at the far edges and a repeated last frame, rather than grey or black, which would shine in.
        below, right = -height % self._factor, -width % self._factor
        after = padded_length(count, self._time) - count
        padded = np.pad(frames, ((0, after), (0, below), (0, right), (0, 0)), mode="edge")
        tops, lefts = self._tiles(padded.shape[1], padded.shape[2])
        ids = []
        for top in tops:
            for left in lefts:
                tile = padded[:, top : top + self._side(padded.shape[1]), left : left + self._side(padded.shape[2])]
                ids.append(np.asarray(self._encode(np.ascontiguousarray(tile)[None]))[0])
        return WindowTokens(np.stack(ids), count, (height, width), tuple(tops), tuple(lefts))

    def decode(self, tokens: WindowTokens) -> Float[np.ndarray, "T H W C"]:
        """The frames of a window, in [-1, 1]."""
        height, width = (side + -side % self._factor for side in tokens.size)
        if len(tokens.tops) == len(tokens.lefts) == 1:
            whole = np.asarray(self._decode(tokens.ids))[0]
            return whole[: tokens.frames, : tokens.size[0], : tokens.size[1]]
        rows = _weights(tokens.tops, self._side(height), height)
        columns = _weights(tokens.lefts, self._side(width), width)
        total = np.zeros((tokens.frames, height, width, 3), np.float32)
        number = 0
        for row, top in zip(rows, tokens.tops, strict=True):
            for column, left in zip(columns, tokens.lefts, strict=True):
                tile = np.asarray(self._decode(tokens.ids[number : number + 1]))[0, : tokens.frames]
                weight = row[top : top + tile.shape[1], None, None] * column[None, left : left + tile.shape[2], None]
                total[:, top : top + tile.shape[1], left : left + tile.shape[2]] += weight * tile
                number += 1
        return total[:, : tokens.size[0], : tokens.size[1]]

    def _side(self, side: int) -> int:
        return min(side, self.cutting.tile or side)

    def _tiles(self, height: int, width: int) -> tuple[list[int], list[int]]:
        tile, blend = self.cutting.tile, self.cutting.blend
        return starts(height, tile, blend, self._factor), starts(width, tile, blend, self._factor)


def _weights(firsts: tuple[int, ...], tile: int, side: int) -> Float[np.ndarray, "n side"]:
    """Weight of each tile at every pixel of a side; they add up to 1 everywhere."""
    positions = np.arange(side)
    rows = []
    for first in firsts:
        inside = (positions >= first) & (positions < first + tile)
        # Distance to the nearer edge of the tile: falls linearly towards both.
        rows.append(np.where(inside, np.minimum(positions - first + 1, first + tile - positions), 0))
    weights = np.stack(rows).astype(np.float32)
    return weights / weights.sum(axis=0)


class CrossFade:
    """Joins decoded windows into one stream of frames, each window after `fade` frames of the one before it."""

    def __init__(self, fade: int):
        self._fade = fade
        self._tail: Float[np.ndarray, "n H W C"] | None = None

    def join(self, window: Float[np.ndarray, "T H W C"], last: bool = False) -> Iterator[Float[np.ndarray, "H W C"]]:
        """The frames that are final once this window is known, in order."""
        if self._tail is not None:
            shared = len(self._tail)
            slope = (np.arange(1, shared + 1, dtype=np.float32) / (shared + 1))[:, None, None, None]
            window = np.concatenate([(1 - slope) * self._tail + slope * window[:shared], window[shared:]])
        keep = 0 if last else min(self._fade, len(window))
        self._tail = window[len(window) - keep :] if keep else None
        yield from window[: len(window) - keep]

    def flush(self) -> Iterator[Float[np.ndarray, "H W C"]]:
        """The frames still held back after the last window."""
        yield from () if self._tail is None else self._tail
        self._tail = None
