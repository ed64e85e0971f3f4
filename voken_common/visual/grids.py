"""Grids: images in rows, originals with their reconstructions and differences, samples by class.

Every grid enlarges small tiles by a whole factor, so that 32 pixels can be looked at, and writes captions under them.
Shapes: B batch, H height, W width, C channels (3, or 1 for grey), N classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Num

from voken_common.metrics.image import psnr
from voken_common.visual.difference import FULL_SCALE, difference_map
from voken_common.visual.style import GAP, PAPER, Picture, captioned, enlarged, readable_zoom, rgb, shrunk, titled

Images = Sequence[Num[np.ndarray, "h w c"]] | Num[np.ndarray, "b h w c"]


def grid(images: Images, columns: int | None = None, gap: int = GAP) -> Picture:
    """Images in rows as they are, white gaps between them; smaller ones are centred in cells of the largest size.

    Args:
        images: one array, or a list of images of any sizes.
        columns: images per row; None: a nearly square grid.
        gap: white pixels between images.

    Raises:
        ValueError: no images, or one that is not (H, W, 1) or (H, W, 3).
    """
    cells = [rgb(image) for image in images]
    if not cells:
        raise ValueError("a grid of no images; expected at least one")
    columns = min(columns or int(np.ceil(np.sqrt(len(cells)))), len(cells))
    rows = -(-len(cells) // columns)
    height, width = max(cell.shape[0] for cell in cells), max(cell.shape[1] for cell in cells)
    picture = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), PAPER, np.uint8)
    for index, cell in enumerate(cells):
        row, column = divmod(index, columns)
        top = row * (height + gap) + (height - cell.shape[0]) // 2
        left = column * (width + gap) + (width - cell.shape[1]) // 2
        picture[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
    return picture


def reconstruction_grid(
    originals: Images,
    reconstructions: Images,
    columns: int = 8,
    names: Sequence[str] | None = None,
    differences: bool = True,
) -> Picture:
    """Every original above its reconstruction above their difference, PSNR in dB and a name underneath.

    Images beyond `LARGEST` pixels are shown smaller; PSNR and difference are of the full ones.

    Args:
        originals, reconstructions: as many of both, in the same sizes.
        columns: images per row.
        names: one per image, such as its file name.
        differences: False leaves the row of differences out.

    Raises:
        ValueError: not as many of each.
    """
    cells = _pairs(originals, reconstructions, names, differences, tiles_per_row=1)
    rows = "original, reconstruction" + (f", difference (darkest from {FULL_SCALE} of 255 on)" if differences else "")
    return titled(grid(cells, columns, gap=3 * GAP), f"from above: {rows}")


def side_by_side(
    originals: Images, reconstructions: Images, names: Sequence[str] | None = None, differences: bool = True
) -> Picture:
    """A row per image: the original, its reconstruction, their difference; PSNR in dB and a name underneath.

    Args:
        originals, reconstructions, names, differences: as of `reconstruction_grid`.

    Raises:
        ValueError: not as many of each.
    """
    cells = _pairs(originals, reconstructions, names, differences, tiles_per_row=3)
    row = "original, reconstruction" + (f", difference (darkest from {FULL_SCALE} of 255 on)" if differences else "")
    return titled(grid(cells, columns=1, gap=3 * GAP), f"from the left: {row}")


def sample_grid(images: Images, names: Sequence[str], columns: int | None = None) -> Picture:
    """Samples in rows, the name of each one's class underneath.

    Args:
        images: the samples.
        names: one per sample.
        columns: samples per row; None: a nearly square grid.

    Raises:
        ValueError: not as many names as images, or no image.
    """
    if len(images) != len(names):
        raise ValueError(f"{len(images)} images, {len(names)} names; expected as many of both")
    zoom = readable_zoom(images)
    return grid([captioned(enlarged(rgb(i), zoom), name) for i, name in zip(images, names, strict=True)], columns)


def class_wall(
    names: Sequence[str],
    originals: Images,
    samples: Sequence[Num[np.ndarray, "b h w c"]] | Num[np.ndarray, "n b h w c"],
    zoom: int | None = None,
) -> Picture:
    """A row per class: an image of it, a gap, and samples of it; the name under the image.

    Args:
        names, originals, samples: as many of each as there are classes.
        zoom: pixels of the picture per pixel of an image, along one side; None: what makes samples readable.

    Raises:
        ValueError: not as many of each.
    """
    if not len(names) == len(originals) == len(samples):
        raise ValueError(
            f"{len(names)} names, {len(originals)} originals, {len(samples)} rows of samples; expected as many of each"
        )
    rows = []
    for name, original, row in zip(names, originals, samples, strict=True):
        factor = zoom or readable_zoom(row)
        left, right = captioned(enlarged(grid([original]), factor), name), enlarged(grid(row, len(row)), factor)
        right = captioned(right, "")
        gap = np.full((left.shape[0], 6 * GAP, 3), PAPER, np.uint8)
        rows.append(np.concatenate([left, gap, right], axis=1))
    return grid(rows, columns=1, gap=GAP)


def _pairs(
    originals: Images, reconstructions: Images, names: Sequence[str] | None, differences: bool, tiles_per_row: int
) -> list[Picture]:
    """A captioned cell per image; all are enlarged by the same factor."""
    counts = {len(originals), len(reconstructions), len(originals) if names is None else len(names)}
    if len(counts) > 1:
        found = f"{len(originals)} originals, {len(reconstructions)} reconstructions"
        raise ValueError(f"{found}{'' if names is None else f', {len(names)} names'}; expected as many of each")
    zoom, cells = readable_zoom(originals), []
    for number, (original, reconstruction) in enumerate(zip(originals, reconstructions, strict=True)):
        tiles = [rgb(original), rgb(reconstruction)]
        value = f"{psnr(tiles[0][None], tiles[1][None])[0]:.1f} dB"
        if differences:
            tiles.append(difference_map(*tiles))
        cell = grid([shrunk(enlarged(tile, zoom)) for tile in tiles], columns=tiles_per_row)
        cells.append(captioned(cell, value if names is None else [names[number], value]))
    return cells
