"""A tokenizer and a k-means quantizer of the same bits per pixel, on the same held-out crops of the photographs.

Shape letters: b crops, h w pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32, Float64

from voken_common.config.schema.data import DataConfig, SkimageConfig
from voken_common.data.sources.skimage import PHOTOGRAPHS, Photographs
from voken_common.metrics import psnr
from voken_common.quickstart.kmeans import fit_kmeans

CROP = 128
"""Side of the crops in pixels."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: of what made the reconstructions.
        bits_per_pixel: of its ids.
        psnr: in dB, one value per crop.
    """

    name: str
    bits_per_pixel: float
    psnr: Float64[np.ndarray, " b"]


def held_out_crops() -> Float32[np.ndarray, "b h w 3"]:
    """The central crop of the held-out part of every photograph, in [-1, 1]."""
    from voken_common.data.pipeline import build_validation_batches

    source = SkimageConfig(region="held_out", crops=len(PHOTOGRAPHS))
    data = DataConfig(train=source, validation=source, image_size=CROP, resize="none", workers=0)
    (batch,) = build_validation_batches(data, batch_size=len(PHOTOGRAPHS))
    return batch["image"]


def photograph_names() -> list[str]:
    """A short name per photograph, in the order of the crops."""
    return [name.rsplit(".", 1)[0].replace("_", " ") for name in PHOTOGRAPHS]


def compare(
    name: str,
    originals: Float[np.ndarray, "b h w 3"],
    reconstructions: Float[np.ndarray, "b h w 3"],
    patch: int,
    codes: int,
) -> list[Row]:
    """The tokenizer's row, and that of k-means on patches of as many pixels as one id of it stands for.

    The centres come from the training parts of the photographs, as the tokenizer does.

    Args:
        name: of the tokenizer.
        originals, reconstructions: held-out crops, and what the tokenizer makes of them.
        patch: side in pixels of what one id stands for.
        codes: how many ids there are.
    """
    photographs = Photographs("train")
    kmeans = fit_kmeans([photographs.read(i)[0] for i in range(len(PHOTOGRAPHS))], patch, codes)
    again = kmeans.decode(kmeans.encode(originals))
    bits = kmeans.bits_per_pixel
    return [
        Row(name, bits, psnr(originals, reconstructions)),
        Row(f"k-means, {patch}x{patch} patches", bits, psnr(originals, again)),
    ]


def table(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Lines to print: PSNR on average, the worst crop, and every crop.

    Args:
        rows: of one comparison.
        names: one per crop.
    """
    first = max(len(row.name) for row in rows)
    short = [name.split()[0][:9] for name in names]
    lines = [f"{'PSNR in dB':{first}}  bits/pixel   mean  worst  " + "  ".join(f"{n:>9}" for n in short)]
    for row in rows:
        values = "  ".join(f"{value:9.1f}" for value in row.psnr)
        lines.append(
            f"{row.name:{first}}  {row.bits_per_pixel:10.3f}  {row.psnr.mean():5.2f}  {row.psnr.min():5.2f}  {values}"
        )
    return "\n".join(lines)
