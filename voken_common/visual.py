"""Pictures for people: grids of originals above their reconstructions, side by sides, and codebook usage.

Drawn with Pillow alone. Shapes: B batch, H height, W width, C channels (3, or 1 for grey). Images are uint8, or float
in [-1, 1]; pictures are uint8 (H, W, 3).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, Num, UInt8
from PIL import Image, ImageDraw, ImageFont

from voken_common.atomic_write import replacing
from voken_common.metrics.codebook import codebook_perplexity, codebook_usage
from voken_common.pixels import to_uint8

Picture = UInt8[np.ndarray, "h w 3"]

GAP = 2
_PAPER, _INK, _FAINT, _BAR = (255, 255, 255), (40, 40, 40), (215, 215, 215), (47, 111, 171)
_FONT_SIZE = 13
_MARGIN = 6


def grid(
    images: Sequence[Num[np.ndarray, "h w c"]] | Num[np.ndarray, "b h w c"], columns: int | None = None, gap: int = GAP
) -> Picture:
    """Images in rows, white gaps between them; smaller ones are centred in cells of the largest size.

    Args:
        images: one array, or a list of images of any sizes.
        columns: images per row; None: a nearly square grid.
        gap: white pixels between images.

    Raises:
        ValueError: no images, or one that is not (H, W, 1) or (H, W, 3).
    """
    cells = [_rgb(image) for image in images]
    if not cells:
        raise ValueError("a grid of no images; expected at least one")
    columns = min(columns or int(np.ceil(np.sqrt(len(cells)))), len(cells))
    rows = -(-len(cells) // columns)
    height, width = max(cell.shape[0] for cell in cells), max(cell.shape[1] for cell in cells)
    picture = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), _PAPER, np.uint8)
    for index, cell in enumerate(cells):
        row, column = divmod(index, columns)
        top = row * (height + gap) + (height - cell.shape[0]) // 2
        left = column * (width + gap) + (width - cell.shape[1]) // 2
        picture[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
    return picture


def reconstruction_grid(
    originals: Sequence[Num[np.ndarray, "h w c"]] | Num[np.ndarray, "b h w c"],
    reconstructions: Sequence[Num[np.ndarray, "h w c"]] | Num[np.ndarray, "b h w c"],
    columns: int = 8,
    labels: Sequence[str] | None = None,
) -> Picture:
    """Every original directly above its reconstruction, `columns` pairs per row.

    Args:
        originals, reconstructions: as many of both.
        columns: pairs per row.
        labels: a short text per pair, written under it.
    """
    _require_pairs(originals, reconstructions, labels)
    pairs = []
    for index, (original, reconstruction) in enumerate(zip(originals, reconstructions, strict=True)):
        pair = grid([original, reconstruction], columns=1)
        pairs.append(pair if labels is None else _captioned(pair, labels[index]))
    return grid(pairs, columns, gap=3 * GAP)


def side_by_side(
    originals: Sequence[Num[np.ndarray, "h w c"]] | Num[np.ndarray, "b h w c"],
    reconstructions: Sequence[Num[np.ndarray, "h w c"]] | Num[np.ndarray, "b h w c"],
    labels: Sequence[str] | None = None,
) -> Picture:
    """One row per image: the original on the left, its reconstruction on the right, the label under both."""
    _require_pairs(originals, reconstructions, labels)
    rows = []
    for index, (original, reconstruction) in enumerate(zip(originals, reconstructions, strict=True)):
        row = grid([original, reconstruction], columns=2)
        rows.append(row if labels is None else _captioned(row, labels[index]))
    return grid(rows, columns=1, gap=3 * GAP)


def clip_strips(
    originals: Num[np.ndarray, "b t h w c"], reconstructions: Num[np.ndarray, "b t h w c"], frames: int = 9
) -> Picture:
    """Two rows per clip: frames spread over it, and under each its reconstruction."""
    _require_pairs(originals, reconstructions, None)
    shown = np.unique(np.linspace(0, originals.shape[1] - 1, min(frames, originals.shape[1])).round().astype(int))
    rows = []
    for original, reconstruction in zip(originals, reconstructions, strict=True):
        rows.append(grid([*original[shown], *reconstruction[shown]], columns=len(shown)))
    return grid(rows, columns=1, gap=3 * GAP)


def clip_pairs(
    originals: Num[np.ndarray, "b t h w c"], reconstructions: Num[np.ndarray, "b t h w c"], columns: int = 4
) -> UInt8[np.ndarray, "t h w 3"]:
    """A moving picture: every clip above its reconstruction, `columns` pairs per row; sides are even numbers."""
    pairs = zip(_by_frame(originals), _by_frame(reconstructions), strict=True)
    moving = np.stack([reconstruction_grid(above, below, columns) for above, below in pairs])
    return np.pad(moving, ((0, 0), (0, moving.shape[1] % 2), (0, moving.shape[2] % 2), (0, 0)), mode="edge")


def _by_frame(clips: Num[np.ndarray, "b t h w c"]) -> Num[np.ndarray, "t b h w c"]:
    return np.moveaxis(np.asarray(clips), 1, 0)


def class_wall(
    names: Sequence[str],
    originals: Sequence[Num[np.ndarray, "h w c"]] | Num[np.ndarray, "n h w c"],
    samples: Sequence[Num[np.ndarray, "b h w c"]] | Num[np.ndarray, "n b h w c"],
    zoom: int = 1,
) -> Picture:
    """A row per class: an image of it, a gap, and samples of it; the name under the image.

    Args:
        names, originals, samples: as many of each as there are classes.
        zoom: pixels of the picture per pixel of an image, along one side.

    Raises:
        ValueError: not as many of each.
    """
    if not len(names) == len(originals) == len(samples):
        raise ValueError(
            f"{len(names)} names, {len(originals)} originals, {len(samples)} rows of samples; expected as many of each"
        )
    rows = []
    for name, original, row in zip(names, originals, samples, strict=True):
        left, right = _captioned(_enlarged(grid([original]), zoom), name), _enlarged(grid(row, len(row)), zoom)
        right = _captioned(right, "")
        gap = np.full((left.shape[0], 6 * GAP, 3), _PAPER, np.uint8)
        rows.append(np.concatenate([left, gap, right], axis=1))
    return grid(rows, columns=1, gap=GAP)


def codebook_usage_plot(counts: Int[np.ndarray, " k"], width: int = 640, height: int = 320) -> Picture:
    """How often each code was used, most frequent first, on a logarithmic scale; unused codes leave the right empty.

    The dashed line is where every code would lie if all were equally frequent.

    Raises:
        ValueError: no code, or a negative count.
    """
    counts = np.asarray(counts)
    if counts.ndim != 1 or not counts.size or counts.min() < 0:
        raise ValueError(f"counts of shape {counts.shape}; expected one non-negative count per code")
    font = ImageFont.load_default(_FONT_SIZE)
    picture = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(picture)
    used, total = int(np.count_nonzero(counts)), int(counts.sum())
    title = (
        f"{used:,} of {counts.size:,} codes used ({100 * codebook_usage(counts):.1f} %), "
        f"perplexity {codebook_perplexity(counts):,.1f}, {total:,} ids"
    )
    draw.text((_MARGIN, _MARGIN), title, fill=_INK, font=font)
    decades = max(int(np.ceil(np.log10(max(counts.max(), 1) + 1))), 1)
    left = 2 * _MARGIN + int(draw.textlength(f"{10**decades:,}", font=font))
    top, right, bottom = 2 * _MARGIN + 2 * _FONT_SIZE, width - _MARGIN, height - 2 * _MARGIN - _FONT_SIZE

    def y(count: np.ndarray | float) -> np.ndarray:
        # One id stands a little above the axis, so that it can be told from none.
        return bottom - (np.log10(np.maximum(count, 1)) + 0.06) / (decades + 0.06) * (bottom - top)

    for decade in range(decades + 1):
        line = int(y(10.0**decade))
        draw.line([(left, line), (right, line)], fill=_FAINT)
        draw.text((left - _MARGIN, line), f"{10**decade:,}", fill=_INK, font=font, anchor="rm")
    descending = np.sort(counts)[::-1]
    codes = np.arange(right - left) * counts.size // (right - left)
    for x, count in enumerate(descending[codes]):
        if count:
            draw.line([(left + x, int(y(count))), (left + x, bottom)], fill=_BAR)
    if total:
        even = int(y(max(total / counts.size, 1)))
        for x in range(left, right, 8):
            draw.line([(x, even), (min(x + 4, right), even)], fill=_INK)
    draw.line([(left, bottom), (right, bottom)], fill=_INK)
    draw.text((left, bottom + _MARGIN), "codes, most frequent first", fill=_INK, font=font)
    return np.asarray(picture)


def gif(frames: UInt8[np.ndarray, "t h w 3"], rate: float) -> bytes:
    """An animated GIF of `rate` frames per second that starts again at its end."""
    pictures = [Image.fromarray(frame) for frame in frames]
    file = io.BytesIO()
    pictures[0].save(file, format="GIF", save_all=True, append_images=pictures[1:], duration=round(1000 / rate), loop=0)
    return file.getvalue()


def save_png(path: str | Path, picture: Num[np.ndarray, "h w c"], *, below: str | Path | None = None) -> Path:
    """Write a picture or an image as PNG under a temporary name, then rename: viewers never see half a file.

    Folders are created; of those below `below` none may be a link. Returns the path.
    """
    image = Image.fromarray(_rgb(picture))
    with replacing(path, below=below) as file:
        image.save(file, format="PNG")
    return Path(path)


def _rgb(image: np.ndarray) -> Picture:
    """An image as bytes in three channels."""
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[-1] not in (1, 3) or 0 in image.shape:
        raise ValueError(f"an image of shape {image.shape}; expected (H, W, 3) or (H, W, 1)")
    return np.ascontiguousarray(np.broadcast_to(to_uint8(image), (*image.shape[:2], 3)))


def _enlarged(picture: Picture, zoom: int) -> Picture:
    return picture.repeat(zoom, axis=0).repeat(zoom, axis=1)


def _captioned(picture: Picture, text: str) -> Picture:
    """A line of text under a picture, cut where the picture ends."""
    canvas = Image.new("RGB", (picture.shape[1], picture.shape[0] + _FONT_SIZE + GAP), _PAPER)
    canvas.paste(Image.fromarray(picture))
    font = ImageFont.load_default(_FONT_SIZE - 2)
    ImageDraw.Draw(canvas).text((1, picture.shape[0] + 1), text, fill=_INK, font=font)
    return np.asarray(canvas)


def _require_pairs(
    originals: Sequence | np.ndarray, reconstructions: Sequence | np.ndarray, labels: Sequence | None
) -> None:
    counts = {len(originals), len(reconstructions), len(originals) if labels is None else len(labels)}
    if len(counts) > 1:
        found = f"{len(originals)} originals, {len(reconstructions)} reconstructions"
        raise ValueError(f"{found}{'' if labels is None else f', {len(labels)} labels'}; expected as many of each")
