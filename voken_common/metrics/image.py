"""PSNR and SSIM of reconstructions, per image, as published tokenizers report them.

Both truncate to uint8 first and use scikit-image's definitions with its defaults, on a data range of 1.
Shapes: B batch, H height, W width, C channels. Images are uint8, or float in [-1, 1].
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float64, Num
from scipy.ndimage import uniform_filter1d

from voken_common.pixels import to_uint8

HIGHEST_PSNR = 10 * math.log10(12 * 255.0**2)
"""58.92 dB: rounding to 8 bits alone has a mean squared error of 1/12 of a squared grey level; less cannot be told."""

_WINDOW = 7
_K1, _K2 = 0.01, 0.03


def psnr(original: Num[np.ndarray, "b h w c"], image: Num[np.ndarray, "b h w c"]) -> Float64[np.ndarray, " b"]:
    """Peak signal-to-noise ratio in dB; infinite where the bytes are equal. Means are taken of `bounded_psnr`.

    Raises:
        ValueError: the shapes differ or are not (B, H, W, C).
    """
    x, y = _bytes(original, image)
    error = np.mean((x - y) ** 2, axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255.0**2 / error)


def bounded_psnr(original: Num[np.ndarray, "b h w c"], image: Num[np.ndarray, "b h w c"]) -> Float64[np.ndarray, " b"]:
    """PSNR in dB, at most `HIGHEST_PSNR`: for means and rankings, which one exact image would make infinite.

    Raises:
        ValueError: as `psnr`.
    """
    return np.minimum(psnr(original, image), HIGHEST_PSNR)


def ssim(original: Num[np.ndarray, "b h w c"], image: Num[np.ndarray, "b h w c"]) -> Float64[np.ndarray, " b"]:
    """Structural similarity in [-1, 1], averaged over channels and over every whole 7x7 window.

    Z. Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", 2004, with a uniform
    window and sample covariances.

    Raises:
        ValueError: as `psnr`, or a side is under 7 pixels.
    """
    x, y = _bytes(original, image)
    if min(x.shape[1:3]) < _WINDOW:
        raise ValueError(f"images of {x.shape[1]}x{x.shape[2]}; SSIM needs at least {_WINDOW}x{_WINDOW}")
    x, y = x / 255.0, y / 255.0
    mean_x, mean_y = _window_mean(x), _window_mean(y)
    samples = _WINDOW**2
    unbiased = samples / (samples - 1)
    variance_x = unbiased * (_window_mean(x * x) - mean_x**2)
    variance_y = unbiased * (_window_mean(y * y) - mean_y**2)
    covariance = unbiased * (_window_mean(x * y) - mean_x * mean_y)
    luminance = (2 * mean_x * mean_y + _K1**2) / (mean_x**2 + mean_y**2 + _K1**2)
    structure = (2 * covariance + _K2**2) / (variance_x + variance_y + _K2**2)
    return np.mean(luminance * structure, axis=(1, 2, 3))


def _bytes(original: np.ndarray, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as the float64 values of their bytes."""
    if np.shape(original) != np.shape(image) or np.ndim(original) != 4:
        raise ValueError(f"shapes {np.shape(original)} and {np.shape(image)}; expected (B, H, W, C) twice the same")
    return to_uint8(original).astype(np.float64), to_uint8(image).astype(np.float64)


def _window_mean(images: np.ndarray) -> np.ndarray:
    """Mean over every whole window: (B, H, W, C) to (B, H - 6, W - 6, C)."""
    rows = uniform_filter1d(images, _WINDOW, axis=1)
    edge = _WINDOW // 2
    return uniform_filter1d(rows, _WINDOW, axis=2)[:, edge:-edge, edge:-edge]
