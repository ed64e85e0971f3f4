"""Pixel conventions that both frameworks share: ranges, rounding, and padding to a multiple of the tokenizer's factor.

Shapes: B batch, H height, W width, C channels. Images are float in [-1, 1] or uint8, channels last.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Num, UInt8


def to_uint8(images: Num[np.ndarray, "*b h w c"]) -> UInt8[np.ndarray, "*b h w c"]:
    """Float images in [-1, 1] as bytes; uint8 passes through.

    (x + 1) / 2 * 255, clipped and **truncated**, as the published figures were computed: rounding would move PSNR.

    Raises:
        TypeError: neither floating point nor uint8.
        ValueError: not finite.
    """
    images = np.asarray(images)
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating):
        # bfloat16 comes from JAX as an ml_dtypes array, which NumPy does not count as floating.
        if images.dtype.name != "bfloat16":
            raise TypeError(f"images of dtype {images.dtype}; expected floats in [-1, 1] or uint8")
        images = images.astype(np.float32)
    if not np.isfinite(images).all():
        raise ValueError("images hold NaN or infinite values; expected floats in [-1, 1]")
    scaled = (images + np.asarray(1, images.dtype)) / 2 * 255
    return np.clip(scaled, 0, 255).astype(np.uint8)


def from_uint8(images: UInt8[np.ndarray, "*b h w c"]) -> Float[np.ndarray, "*b h w c"]:
    """Bytes as float32 in [-1, 1]: x / 127.5 - 1."""
    images = np.asarray(images)
    if images.dtype != np.uint8:
        raise TypeError(f"images of dtype {images.dtype}; expected uint8")
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1)


@dataclass(frozen=True)
class Region:
    """Rows top..bottom and columns left..right (exclusive) of a padded image that were there before."""

    top: int
    left: int
    bottom: int
    right: int

    def crop(self, images: np.ndarray) -> np.ndarray:
        """The region of (..., H, W, C) images."""
        return images[..., self.top : self.bottom, self.left : self.right, :]


def pad_to_multiple(
    images: Num[np.ndarray, "*b h w c"], multiple: int = 16
) -> tuple[Num[np.ndarray, "*b hh ww c"], Region]:
    """Pad height and width with 0 (mid-grey in [-1, 1]) to multiples, half on each side, the odd pixel after.

    Returns:
        the padded images, and the region that crops them, or their reconstruction, back.
    """
    height, width = images.shape[-3:-1]
    return pad_to_size(images, height + -height % multiple, width + -width % multiple)


def pad_to_size(
    images: Num[np.ndarray, "*b h w c"], rows: int, columns: int
) -> tuple[Num[np.ndarray, "*b hh ww c"], Region]:
    """As `pad_to_multiple`, to a height and width that are not less than those of the images."""
    if np.asarray(images).dtype == np.uint8:
        raise TypeError("padding is with 0, which is grey only in [-1, 1]; convert by from_uint8 first")
    height, width = images.shape[-3:-1]
    if rows < height or columns < width:
        raise ValueError(f"images are {height} x {width}: they cannot be padded to {rows} x {columns}")
    top, left = (rows - height) // 2, (columns - width) // 2
    bottom, right = rows - height - top, columns - width - left
    widths = [(0, 0)] * (images.ndim - 3) + [(top, bottom), (left, right), (0, 0)]
    return np.pad(images, widths), Region(top, left, top + height, left + width)
