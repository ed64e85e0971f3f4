"""Pictures of clips: strips of frames, and moving pictures of originals above their reconstructions.

Shapes: B batch, T frames, H height, W width, C channels.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Num, UInt8

from voken_common.visual.grids import grid
from voken_common.visual.style import GAP, Picture, enlarged, readable_zoom, rgb

Clips = Num[np.ndarray, "b t h w c"]


def clip_strips(originals: Clips, reconstructions: Clips, frames: int = 9) -> Picture:
    """Two rows per clip: frames spread over it, and under each its reconstruction; small frames are enlarged."""
    _require_pairs(originals, reconstructions)
    shown = np.unique(np.linspace(0, originals.shape[1] - 1, min(frames, originals.shape[1])).round().astype(int))
    zoom, rows = readable_zoom(originals[:, 0]), []
    for original, reconstruction in zip(originals, reconstructions, strict=True):
        tiles = [enlarged(rgb(frame), zoom) for clip in (original, reconstruction) for frame in clip[shown]]
        rows.append(grid(tiles, columns=len(shown)))
    return grid(rows, columns=1, gap=3 * GAP)


def clip_pairs(originals: Clips, reconstructions: Clips, columns: int = 4) -> UInt8[np.ndarray, "t h w 3"]:
    """A moving picture: every clip above its reconstruction, `columns` pairs per row; sides are even numbers."""
    _require_pairs(originals, reconstructions)
    zoom, moving = readable_zoom(originals[:, 0]), []
    for number in range(originals.shape[1]):
        pairs = zip(originals[:, number], reconstructions[:, number], strict=True)
        cells = [grid([enlarged(rgb(above), zoom), enlarged(rgb(below), zoom)], columns=1) for above, below in pairs]
        moving.append(grid(cells, columns, gap=3 * GAP))
    frames = np.stack(moving)
    return np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")


def _require_pairs(originals: Clips, reconstructions: Clips) -> None:
    if len(originals) != len(reconstructions):
        found = f"{len(originals)} originals, {len(reconstructions)} reconstructions"
        raise ValueError(f"{found}; expected as many of each")
