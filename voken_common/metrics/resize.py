"""Bilinear resizing without antialiasing, in the two conventions under which FID is reported.

`half_pixel`: pixel centres correspond, x = (i + 0.5) * in / out - 0.5 (PyTorch's align_corners false; pytorch-fid and
the tokenizers' rFID). `tensorflow1`: x = i * in / out (TensorFlow 1; the ADM evaluator and torch-fidelity). Beyond the
edges the edge pixel is repeated. The choice moves an FID by far more than its noise: a reported FID names it.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Int64

Resize = Literal["half_pixel", "tensorflow1"]
RESIZES: tuple[Resize, ...] = get_args(Resize)


def taps(
    size: int, target: int, resize: Resize
) -> tuple[Int64[np.ndarray, " t"], Int64[np.ndarray, " t"], Float[np.ndarray, " t"]]:
    """Along one axis: the two source indices of every target index, and the weight of the second.

    The weights of `tensorflow1` are rounded as TensorFlow computes them, in float32 steps.

    Raises:
        ValueError: an unknown convention, or no pixels.
    """
    if resize not in RESIZES:
        raise ValueError(f"resize is {resize!r}, expected one of {', '.join(RESIZES)}")
    if size < 1 or target < 1:
        raise ValueError(f"{size} pixels to {target}: expected at least 1")
    if resize == "tensorflow1":
        scale = np.float32(size) / np.float32(target)
        source = np.arange(target, dtype=np.float32) * scale
    else:
        source = np.maximum((np.arange(target, dtype=np.float64) + 0.5) * (size / target) - 0.5, 0.0)
    low = np.minimum(np.floor(source).astype(np.int64), size - 1)
    high = np.minimum(low + 1, size - 1)
    return low, high, source - low


def resize_bilinear(
    images: Float[np.ndarray, "b h w c"], side: int, resize: Resize = "half_pixel"
) -> Float[np.ndarray, "b s s c"]:
    """Images of any size to `side` x `side`, in NumPy; the networks do the same on their device."""
    for axis in (1, 2):
        low, high, weight = taps(images.shape[axis], side, resize)
        shape = [1] * images.ndim
        shape[axis] = side
        first, second = np.take(images, low, axis), np.take(images, high, axis)
        images = first + (second - first) * weight.astype(images.dtype).reshape(shape)
    return images
