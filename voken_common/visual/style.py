"""The one look of every picture: paper, ink, gaps, type, tiles large enough to read, and captions.

Shapes: H height, W width, C channels (3, or 1 for grey). Images are uint8, or float in [-1, 1]; pictures are uint8
(H, W, 3).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Num, UInt8
from PIL import Image, ImageDraw, ImageFont

from voken_common.pixels import to_uint8

Picture = UInt8[np.ndarray, "h w 3"]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

GAP = 2
MARGIN = 6
PAPER, INK, FAINT, BAR = (255, 255, 255), (40, 40, 40), (215, 215, 215), (47, 111, 171)
FONT_SIZE = 13
CAPTION_SIZE = FONT_SIZE - 2
LINE = FONT_SIZE + GAP
"""Pixels of height that a line of caption takes."""
READABLE = 128
"""Tiles are enlarged by whole factors until their longer side is about so many pixels."""
LARGEST = 768
"""Tiles of photographs whose longer side has more pixels are shrunk to it."""


def rgb(image: Num[np.ndarray, "h w c"]) -> Picture:
    """An image as bytes in three channels.

    Raises:
        ValueError: it is not (H, W, 3) or (H, W, 1), or has no pixel.
    """
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[-1] not in (1, 3) or 0 in image.shape:
        raise ValueError(f"an image of shape {image.shape}; expected (H, W, 3) or (H, W, 1)")
    return np.ascontiguousarray(np.broadcast_to(to_uint8(image), (*image.shape[:2], 3)))


def readable_zoom(images: Sequence[np.ndarray] | np.ndarray) -> int:
    """By which whole factor to enlarge images of these sizes: 4 for 32 pixels, 2 for 64, 1 from 86 pixels on."""
    longest = max((max(np.shape(image)[:2]) for image in images), default=READABLE)
    return max(1, round(READABLE / longest))


def enlarged(picture: Picture, zoom: int) -> Picture:
    """Every pixel `zoom` times along both sides, so that single pixels stay visible."""
    return picture.repeat(zoom, axis=0).repeat(zoom, axis=1)


def shrunk(picture: Picture) -> Picture:
    """The picture itself, or one of `LARGEST` pixels along the longer side, averaged down."""
    height, width = picture.shape[:2]
    if max(height, width) <= LARGEST:
        return picture
    share = LARGEST / max(height, width)
    size = (max(1, round(width * share)), max(1, round(height * share)))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))


def captioned(picture: Picture, lines: str | Sequence[str]) -> Picture:
    """Lines of text under a picture; a line that is too long keeps its beginning and its end."""
    lines = [lines] if isinstance(lines, str) else lines
    height, width = picture.shape[:2]
    canvas = Image.new("RGB", (width, height + LINE * len(lines)), PAPER)
    canvas.paste(Image.fromarray(picture))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(CAPTION_SIZE)
    for number, line in enumerate(lines):
        draw.text((1, height + 1 + LINE * number), _fitted(draw, line, font, width), fill=INK, font=font)
    return np.asarray(canvas)


def titled(picture: Picture, text: str) -> Picture:
    """A line above a picture that says how to read it; the picture grows to the right where the line needs it."""
    font = ImageFont.load_default(CAPTION_SIZE)
    needed = int(np.ceil(font.getlength(text))) + 2
    height, width = picture.shape[:2]
    canvas = Image.new("RGB", (max(width, needed), height + LINE + GAP), PAPER)
    canvas.paste(Image.fromarray(picture), (0, LINE + GAP))
    ImageDraw.Draw(canvas).text((1, 1), text, fill=INK, font=font)
    return np.asarray(canvas)


def _fitted(
    draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int
) -> str:
    """The text, or as much of its two ends as fits with dots between them."""
    if draw.textlength(text, font=font) <= width - 1:
        return text
    for kept in range(len(text) - 1, 1, -1):
        shorter = f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
        if draw.textlength(shorter, font=font) <= width - 1:
            return shorter
    return text[:1]
