"""Pictures of a report: best, median and worst reconstructions with difference maps, and use of the codebook.

Shapes: H height, W width. Originals are uint8, reconstructions float in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Num, UInt8

from voken_common.evaluation.report.model import LABELS, Picture, shown
from voken_common.evaluation.summary import Summary
from voken_common.pixels import to_uint8
from voken_common.visual import codebook_usage_plot, grid, save_png

RANKED_BY = ("lpips_vgg", "lpips_alex", "psnr")
"""The first that was measured decides what is best and worst."""
GAIN = 4
"""Difference maps show the absolute difference of bytes times this, black where there is none."""
_SIDE = 256
Pairs = Callable[[list[int]], list[tuple[UInt8[np.ndarray, "h w 3"], Float[np.ndarray, "h w 3"]]]]


class Chosen(NamedTuple):
    """Images to be shown.

    Attributes:
        by: the metric.
        ranks: name of the group to ranks in the evaluation order.
        values: rank to the metric's value.
    """

    by: str
    ranks: dict[str, list[int]]
    values: dict[int, float]


def choose(summary: Summary, each: int = 4) -> Chosen | None:
    """The best, the middle and the worst images; None where nothing was measured per image."""
    by = next((name for name in RANKED_BY if name in summary.values), None)
    if by is None:
        return None
    column, rank = summary.per_image[by], summary.per_image["rank"]
    finite = np.isfinite(column)
    column, rank = column[finite], rank[finite]
    order = np.argsort(column, kind="stable")
    if LABELS[by].better == "higher":
        order = order[::-1]
    each = min(each, len(order))
    middle = max((len(order) - each) // 2, 0)
    groups = {"Best": order[:each], "Median": order[middle : middle + each], "Worst": order[::-1][:each]}
    values = {int(rank[i]): float(column[i]) for group in groups.values() for i in group}
    return Chosen(by, {name: [int(rank[i]) for i in group] for name, group in groups.items()}, values)


def difference_map(original: UInt8[np.ndarray, "h w 3"], image: Num[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Absolute difference of the bytes times `GAIN`."""
    difference = np.abs(original.astype(np.int16) - to_uint8(image).astype(np.int16))
    return np.minimum(difference * GAIN, 255).astype(np.uint8)


def draw(summary: Summary, folder: Path, pairs: Pairs) -> tuple[Picture, ...]:
    """Write the pictures into `folder`; `pairs` gives original and reconstruction of ranks."""
    pictures = []
    chosen = choose(summary)
    for name, ranks in (chosen.ranks if chosen is not None else {}).items():
        assert chosen is not None
        shown_pairs = pairs(ranks)
        cells = [_fitted(original) for original, _ in shown_pairs]
        cells += [_fitted(to_uint8(image)) for _, image in shown_pairs]
        cells += [_fitted(difference_map(original, image)) for original, image in shown_pairs]
        file = f"{name.lower()}.png"
        save_png(folder / file, grid(cells, columns=len(shown_pairs)))
        values = ", ".join(shown(chosen.by, chosen.values[rank]) for rank in ranks)
        title = LABELS[chosen.by].title
        caption = (
            f"{name} by {title}: {values}. Originals, reconstructions, and the absolute difference times {GAIN}. "
            f"Places in the evaluation order: {', '.join(map(str, ranks))}."
        )
        pictures.append(Picture(file, caption))
    if summary.counts is not None:
        save_png(folder / "usage.png", codebook_usage_plot(summary.counts, width=960, height=360))
        np.savez_compressed(folder / "ids_histogram.npz", counts=summary.counts)
        pictures.append(Picture("usage.png", "Use of the codebook; the counts of all codes are in ids_histogram.npz."))
    return tuple(pictures)


def _fitted(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """At most `_SIDE` on the longer side, by taking every n-th pixel, and small ones enlarged by whole factors."""
    longest = max(image.shape[:2])
    if longest > _SIDE:
        step = -(-longest // _SIDE)
        return image[::step, ::step]
    zoom = max(1, _SIDE // longest)
    return image.repeat(zoom, axis=0).repeat(zoom, axis=1)
