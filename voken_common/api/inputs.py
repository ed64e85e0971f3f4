"""Images and ids as users have them, to the arrays that a tokenizer computes with.

Images may be paths, encoded bytes, PIL images, NumPy arrays, arrays and tensors of either framework, one or a batch, or
a list of any of these. NumPy and JAX arrays are channels last; PyTorch tensors are channels first, as PyTorch has them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image

from voken_common.data.decode import decode_image, to_rgb
from voken_common.errors import UserError
from voken_common.pixels import Region, from_uint8

OVERSHOOT = 0.01
"""Floats may leave [-1, 1] by so much: rounding, not another range."""


class Given(NamedTuple):
    """A caller's input as a batch.

    Attributes:
        array: images (B, H, W, C) or clips (B, T, H, W, C) in [-1, 1], or ids (B, h, w) or (B, t, h, w).
        single: it was one, and one is expected back.
    """

    array: np.ndarray
    single: bool


def to_images(images: Any, channels: int = 3, axes: int = 2) -> Given:
    """Images as floats in [-1, 1], channels last, always a batch.

    Args:
        images: see the top of this file; bytes (uint8) become x / 127.5 - 1, floats are taken as they are.
        channels: of the tokenizer's images.
        axes: 2 of images (H, W), 3 of clips (T, H, W), which come as arrays alone.

    Raises:
        UserError: another shape or type, values outside [-1, 1], NaN, or images of several sizes.
        ImageDecodeError: a file that is not there or cannot be decoded.
    """
    if axes == 3 and (isinstance(images, (str, os.PathLike, bytes)) or not _rank(images)):
        raise UserError(
            f"a video tokenizer takes arrays (T, H, W, {channels}) or (B, T, H, W, {channels}), found "
            f"{type(images).__name__}; files go through `voken reconstruct` and `voken encode`"
        )
    if isinstance(images, (list, tuple)):
        return Given(_stacked(images, channels), single=False)
    if isinstance(images, (str, os.PathLike, bytes, Image.Image)):
        return Given(_pixels_of(images, channels)[None], single=True)
    array, first = as_numpy(images), is_torch(images)
    single = array.ndim == axes + 1
    array = array[None] if single else array
    check_shape(array.shape, channels, channels_first=first, given=tuple(images.shape), axes=axes)
    array = np.moveaxis(array, 1, -1) if first else array
    return Given(_in_range(array), single)


def to_ids(ids: Any, codebook_size: int, axes: int = 2) -> Given:
    """Ids as int64 (B, h, w), always a batch; of any integer type, as array, tensor or nested lists.

    With `axes` 3 they are those of clips, (B, t, h, w).

    Raises:
        UserError: no integers, another shape, or an id outside [0, codebook_size).
    """
    array = as_numpy(ids)
    if array.size == 0 and array.dtype.kind == "f":
        array = array.astype(np.int64)
    if array.ndim not in (axes, axes + 1) or array.dtype.kind not in "iu":
        order = "t, h, w" if axes == 3 else "h, w"
        raise UserError(f"ids are {array.dtype} of shape {array.shape}, expected integers (B, {order}) or ({order})")
    if array.size and not 0 <= array.min() <= array.max() < codebook_size:
        raise UserError(
            f"ids run from {array.min()} to {array.max()}, expected 0 to {codebook_size - 1}: "
            "they belong to another tokenizer"
        )
    single = array.ndim == axes
    return Given((array[None] if single else array).astype(np.int64), single)


def as_numpy(values: Any) -> np.ndarray:
    """An array, tensor or nested list as a NumPy array; tensors come to the CPU, bfloat16 becomes float32."""
    if is_torch(values):
        values = values.detach().cpu()
        values = values.float() if "bfloat16" in str(values.dtype) else values
        return np.asarray(values.numpy())
    array = np.asarray(values)
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def is_torch(value: Any) -> bool:
    """True if a value is a PyTorch tensor; found out without importing PyTorch."""
    return any(kind.__module__ == "torch" and kind.__name__ == "Tensor" for kind in type(value).__mro__)


def check_shape(
    shape: Sequence[int],
    channels: int,
    *,
    channels_first: bool = False,
    given: Sequence[int] | None = None,
    axes: int = 2,
) -> None:
    """Raise UserError unless a batch of images has this many channels and at least one pixel.

    Args:
        shape: of the batch.
        channels: expected ones.
        channels_first: the order of PyTorch tensors.
        given: the shape to name in the message, where it was not a batch.
        axes: 2 of images, 3 of clips.
    """
    sides, what = ("T, H, W", "clips") if axes == 3 else ("H, W", "images")
    order = f"({channels}, {sides})" if channels_first else f"({sides}, {channels})"
    where = "channels first, as PyTorch tensors are" if channels_first else "channels last"
    found = shape[1:2] if channels_first else shape[-1:]
    if len(shape) != axes + 2 or tuple(found) != (channels,) or 0 in shape[1:]:
        raise UserError(f"{what} have shape {tuple(given or shape)}, expected {order} or (B, {order[1:-1]}), {where}")


def check_range(low: float, high: float) -> None:
    """Raise UserError unless the smallest and largest value of images are those of floats in [-1, 1]."""
    if not (np.isfinite(low) and np.isfinite(high)):
        raise UserError("images hold NaN or infinite values, expected floats in [-1, 1]")
    if low < -1 - OVERSHOOT or high > 1 + OVERSHOOT:
        hint = (
            "bytes are taken as they are in uint8, or become such floats by x / 127.5 - 1"
            if high > 2
            else "clip what a resize overshoots"
        )
        raise UserError(f"images run from {low:.4g} to {high:.4g}, expected floats in [-1, 1]: {hint}")


def check_floating(dtype: Any, floating: bool) -> None:
    """Raise UserError for images that are neither floats nor bytes."""
    if not floating:
        raise UserError(f"images are {dtype}, expected uint8 or floats in [-1, 1]")


def check_sides(height: int, width: int, downsampling: int) -> None:
    """Raise UserError unless both sides of images are whole tokens."""
    if height % downsampling or width % downsampling:
        raise UserError(
            f"images are {height} x {width}: both sides must be multiples of {downsampling}; `encode(..., crop=True)` "
            "cuts the middle, `reconstruct` pads and crops back"
        )


def middle(height: int, width: int, downsampling: int) -> Region:
    """The middle of images, with sides that are multiples of `downsampling`.

    Raises:
        UserError: they are smaller than one token.
    """
    if min(height, width) < downsampling:
        raise UserError(f"images are {height} x {width}, smaller than one token of {downsampling} x {downsampling}")
    top, left = height % downsampling // 2, width % downsampling // 2
    return Region(top, left, top + height - height % downsampling, left + width - width % downsampling)


def _stacked(images: Sequence[Any], channels: int) -> Float[np.ndarray, "B H W C"]:
    if images and not any(isinstance(part, (str, os.PathLike, bytes, Image.Image)) or _rank(part) for part in images):
        raise UserError("a list of numbers is no list of images: pass an array (H, W, 3)")
    parts = [_pixels_of(image, channels) for image in images]
    sizes = sorted({part.shape[:2] for part in parts})
    if len(sizes) > 1:
        shown = ", ".join(f"{height} x {width}" for height, width in sizes[:4]) + (", ..." if len(sizes) > 4 else "")
        raise UserError(f"a list of images of several sizes ({shown}): encode them one by one, or resize them first")
    if not parts:
        raise UserError("an empty list of images has no size: pass an array (0, H, W, 3) for none")
    return np.stack(parts)


def _pixels_of(image: Any, channels: int) -> Float[np.ndarray, "H W C"]:
    """One image, in [-1, 1]."""
    if isinstance(image, Image.Image):
        pixels = to_rgb(image)
    elif isinstance(image, (str, os.PathLike, bytes)):
        pixels = decode_image(image)
    else:
        given = to_images(image, channels)
        if not given.single:
            raise UserError(f"a list holds single images, found one entry of shape {tuple(image.shape)}: stack them")
        return given.array[0]
    if channels == 1:
        pixels = np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
    return from_uint8(pixels)


def _rank(value: Any) -> int:
    return len(getattr(value, "shape", ()))


def _in_range(images: np.ndarray) -> Float[np.ndarray, "B H W C"]:
    if images.dtype == np.uint8:
        return from_uint8(images)
    check_floating(images.dtype, images.dtype.kind == "f")
    if images.size:
        check_range(float(images.min()), float(images.max()))
    return images
