"""Plots: how often the codes of a codebook are used. Drawn with Pillow alone. Shapes: K codes."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int
from PIL import Image, ImageDraw, ImageFont

from voken_common.metrics.codebook import codebook_perplexity, codebook_usage
from voken_common.visual.style import BAR, FAINT, FONT_SIZE, INK, MARGIN, PAPER, Picture


def codebook_usage_plot(counts: Int[np.ndarray, " k"], width: int = 640, height: int = 320) -> Picture:
    """Plot the counts of codes, most frequent first, on a logarithmic scale; unused codes leave the right empty.

    The dashed line is where every code would lie if all were equally frequent.

    Raises:
        ValueError: no code, or a negative count.
    """
    counts = np.asarray(counts)
    if counts.ndim != 1 or not counts.size or counts.min() < 0:
        raise ValueError(f"counts of shape {counts.shape}; expected one non-negative count per code")
    font = ImageFont.load_default(FONT_SIZE)
    picture = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(picture)
    used, total = int(np.count_nonzero(counts)), int(counts.sum())
    title = (
        f"{used:,} of {counts.size:,} codes used ({100 * codebook_usage(counts):.1f} %), "
        f"perplexity {codebook_perplexity(counts):,.1f}, {total:,} ids"
    )
    draw.text((MARGIN, MARGIN), title, fill=INK, font=font)
    decades = max(int(np.ceil(np.log10(max(counts.max(), 1) + 1))), 1)
    left = 2 * MARGIN + int(draw.textlength(f"{10**decades:,}", font=font))
    top, right, bottom = 2 * MARGIN + 2 * FONT_SIZE, width - MARGIN, height - 2 * MARGIN - FONT_SIZE

    def y(count: np.ndarray | float) -> np.ndarray:
        # One id stands a little above the axis, so that it can be told from none.
        return bottom - (np.log10(np.maximum(count, 1)) + 0.06) / (decades + 0.06) * (bottom - top)

    for decade in range(decades + 1):
        line = int(y(10.0**decade))
        draw.line([(left, line), (right, line)], fill=FAINT)
        draw.text((left - MARGIN, line), f"{10**decade:,}", fill=INK, font=font, anchor="rm")
    descending = np.sort(counts)[::-1]
    codes = np.arange(right - left) * counts.size // (right - left)
    for x, count in enumerate(descending[codes]):
        if count:
            draw.line([(left + x, int(y(count))), (left + x, bottom)], fill=BAR)
    if total:
        even = int(y(max(total / counts.size, 1)))
        for x in range(left, right, 8):
            draw.line([(x, even), (min(x + 4, right), even)], fill=INK)
    draw.line([(left, bottom), (right, bottom)], fill=INK)
    draw.text((left, bottom + MARGIN), "codes, most frequent first", fill=INK, font=font)
    return np.asarray(picture)
