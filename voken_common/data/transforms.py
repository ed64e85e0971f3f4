"""Resizing, cropping, scaling and padding of images, in NumPy and Pillow only.

Two conventions of the short-side resize are in use among published tokenizers, and both are reproduced bit for bit so
that figures can be compared: `pil` (bilinear with antialiasing) and `cv2` (bilinear in fixed point, no antialiasing).

Shape letters: b = batch, h w and H W = height and width before and after, s = side of the square that the network
sees, c = channels, *t = frames of a clip, or nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float, Float32, Int32, UInt8
from PIL import Image

Convention: TypeAlias = Literal["pil", "cv2", "none"]
Region: TypeAlias = tuple[int, int, int, int]
"""(top, left, bottom, right) in pixels, bottom and right exclusive."""
Place: TypeAlias = Callable[[int, int], tuple[int, int]]
"""Top and left of a crop, given how many pixels more than the crop the image has in height and width."""

_FIXED_POINT_ONE = 2048
_PIECE = 1 << 17


def to_float(image: UInt8[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """Bytes to float32 in [-1, 1]: x / 127.5 - 1, rounded once.

    Written as (x - 127.5) / 127.5, whose numerator is exact in float32: the result is that of double precision. In
    pieces that stay in the processor's cache, since memory is what this takes.
    """
    result = np.empty(image.shape, np.float32)
    values, flat = image.reshape(-1), result.reshape(-1)
    for start in range(0, len(flat), _PIECE):
        piece = flat[start : start + _PIECE]
        piece[...] = values[start : start + _PIECE]
        piece -= np.float32(127.5)
        piece /= np.float32(127.5)
    return result


def resize_short_side(
    image: UInt8[np.ndarray, "h w 3"], size: int, convention: Convention
) -> UInt8[np.ndarray, "H W 3"]:
    """Resize so that the shorter side has `size` pixels, keeping the aspect ratio.

    Args:
      image: RGB bytes.
      size: pixels of the shorter side afterwards.
      convention: `pil` truncates the longer side and antialiases; `cv2` rounds it (half to even) and does not
        antialias; `none` leaves the image alone, unless a side is shorter than `size`: then `pil`.
    """
    height, width = image.shape[:2]
    sides = _resized_sides(height, width, size, convention)
    if sides == (height, width):
        return image
    if convention == "cv2":
        return resize_bilinear_cv2(image, *sides)
    return _resize_pillow(Image.fromarray(image), *sides)


def resize_pillow_image(image: Image.Image, size: int, convention: Convention) -> UInt8[np.ndarray, "H W 3"]:
    """`resize_short_side` of an RGB image that Pillow holds, with the same result and a copy or two less.

    Args:
      image, size, convention: as there.
    """
    sides = _resized_sides(image.height, image.width, size, convention)
    if convention == "cv2" or sides == (image.height, image.width):
        return resize_short_side(np.asarray(image), size, convention)
    return _resize_pillow(image, *sides)


def _resized_sides(height: int, width: int, size: int, convention: Convention) -> tuple[int, int]:
    short = min(height, width)
    if convention == "none" and short >= size:
        return height, width
    if convention == "cv2":
        return round(height * size / short), round(width * size / short)
    if convention in ("pil", "none"):
        new_height, new_width = (size if side == short else int(size * side / short) for side in (height, width))
        return new_height, new_width
    raise ValueError(f"unknown resize convention {convention!r}: expected pil, cv2 or none")


def _resize_pillow(image: Image.Image, height: int, width: int) -> UInt8[np.ndarray, "H W 3"]:
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def resize_pillow_crop(
    image: Image.Image, size: int, convention: Convention, place: Place
) -> UInt8[np.ndarray, "s s 3"]:
    """Resize and crop to a square without computing the pixels that the crop leaves out.

    By `cv2` the very same pixels. Where Pillow resizes, which takes the place of the crop in single precision, about
    one value in a thousand of a photograph differs by one of 255 grey levels.

    Args:
      image, size, convention: as of `resize_short_side`.
      place: of the square in the resized image.
    """
    height, width = _resized_sides(image.height, image.width, size, convention)
    if (height, width) == (image.height, image.width):
        return crop(np.asarray(image), size, place)
    top, left = place(height - size, width - size)
    if convention == "cv2":
        return resize_bilinear_cv2(np.asarray(image), height, width, region=(top, left, top + size, left + size))
    down, across = image.height / height, image.width / width
    # Rounding may carry the last edges out of the image, which Pillow refuses.
    bottom, right = min((top + size) * down, image.height), min((left + size) * across, image.width)
    box = (left * across, top * down, right, bottom)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))


def resize_bilinear_cv2(
    image: UInt8[np.ndarray, "h w 3"], height: int, width: int, *, region: Region | None = None
) -> UInt8[np.ndarray, "H W 3"]:
    """OpenCV's INTER_LINEAR for bytes, bit for bit, in its 11-bit fixed-point arithmetic (no antialiasing).

    Args:
      image: bytes of any values.
      height, width: of the resized image.
      region: the part of it that is wanted; all by default.
    """
    first_row, first_column, last_row, last_column = region or (0, 0, height, width)
    if image.shape[:2] == (height, width):
        return image[first_row:last_row, first_column:last_column]
    top, bottom, b0, b1 = (taps[first_row:last_row] for taps in _bilinear_taps(image.shape[0], height))
    left, right, a0, a1 = (taps[first_column:last_column] for taps in _bilinear_taps(image.shape[1], width))
    # Beyond the outermost pixel centres OpenCV repeats the edge with the whole weight on one tap along x, but with the
    # weight still split over both taps along y; each half is rounded, so that the two are not the same.
    edge = left == right
    a0, a1 = np.where(edge, _FIXED_POINT_ONE, a0), np.where(edge, 0, a1)
    # Only the source rows that some output row needs, with the channels as neighbouring columns: long inner loops.
    rows, inverse = np.unique(np.concatenate([top, bottom]), return_inverse=True)
    columns = image[rows].reshape(len(rows), -1).astype(np.int32)
    channels = np.arange(3)
    horizontal = np.take(columns, (left[:, None] * 3 + channels).ravel(), axis=1)
    horizontal *= np.repeat(a0, 3)
    other = np.take(columns, (right[:, None] * 3 + channels).ravel(), axis=1)
    other *= np.repeat(a1, 3)
    horizontal += other
    horizontal >>= 4
    upper, lower = horizontal[inverse[: len(top)]], horizontal[inverse[len(top) :]]
    upper *= b0[:, None]
    lower *= b1[:, None]
    upper >>= 16
    lower >>= 16
    upper += lower
    upper += 2
    upper >>= 2
    return upper.astype(np.uint8).reshape(len(top), len(left), 3)


def _bilinear_taps(
    length: int, new_length: int
) -> tuple[Int32[np.ndarray, " n"], Int32[np.ndarray, " n"], Int32[np.ndarray, " n"], Int32[np.ndarray, " n"]]:
    """Indices of the two source samples of every output sample, and their weights in units of 1/2048."""
    x = ((np.arange(new_length) + 0.5) * (length / new_length) - 0.5).astype(np.float32)
    first = np.floor(x).astype(np.int32)
    weight = x - first.astype(np.float32)
    a1 = np.rint(weight * np.float32(_FIXED_POINT_ONE)).astype(np.int32)
    a0 = np.rint((np.float32(1) - weight) * np.float32(_FIXED_POINT_ONE)).astype(np.int32)
    return np.clip(first, 0, length - 1), np.clip(first + 1, 0, length - 1), a0, a1


def crop(image: UInt8[np.ndarray, "*t h w 3"], size: int, place: Place) -> UInt8[np.ndarray, "*t s s 3"]:
    """Return the square of `size` pixels at an offset.

    Raises:
      ValueError: the image is smaller than that.
    """
    height, width = image.shape[-3:-1]
    if min(height, width) < size:
        raise ValueError(f"cannot cut {size}x{size} pixels (height x width) out of {height}x{width}: resize first")
    top, left = place(height - size, width - size)
    return image[..., top : top + size, left : left + size, :]


def central(convention: Convention) -> Place:
    """The middle. Half a pixel is rounded half to even by `pil` (and `none`), down by `cv2`."""
    if convention == "cv2":
        return lambda height, width: (height // 2, width // 2)
    return lambda height, width: (round(height / 2), round(width / 2))


def relative(position: tuple[float, float]) -> Place:
    """A relative position: (0, 0) is the top left corner, (1, 1) the bottom right one."""
    return lambda height, width: (round(position[0] * height), round(position[1] * width))


def random_place(generator: np.random.Generator) -> Place:
    """Uniformly random; draws two numbers at once and whatever the image, so that later draws do not shift."""
    down, across = generator.random(2)
    return lambda height, width: (int(down * (height + 1)), int(across * (width + 1)))


def center_crop(
    image: UInt8[np.ndarray, "*t h w 3"], size: int, convention: Convention
) -> UInt8[np.ndarray, "*t s s 3"]:
    """`crop` in the middle."""
    return crop(image, size, central(convention))


def random_crop(
    image: UInt8[np.ndarray, "*t h w 3"], size: int, generator: np.random.Generator
) -> UInt8[np.ndarray, "*t s s 3"]:
    """Crop at a uniformly random offset."""
    return crop(image, size, random_place(generator))


def random_flip(image: UInt8[np.ndarray, "*t h w 3"], generator: np.random.Generator) -> UInt8[np.ndarray, "*t h w 3"]:
    """Mirror left to right with probability one half."""
    return image[..., ::-1, :] if generator.random() < 0.5 else image


def preprocess(image: UInt8[np.ndarray, "h w 3"], size: int, convention: Convention) -> Float32[np.ndarray, "s s 3"]:
    """Evaluation view of an image: short-side resize, central crop, float32 in [-1, 1]."""
    return to_float(center_crop(resize_short_side(image, size, convention), size, convention))


def pad_to_multiple(
    images: Float[np.ndarray, "b h w c"], multiple: int = 16
) -> tuple[Float[np.ndarray, "b H W c"], Region]:
    """Pad with zeros (mid-grey in [-1, 1]) to sides divisible by `multiple`, half on each side, the smaller half first.

    Returns:
      The padded images and the region of the originals in them, for `crop_to_region`.
    """
    height, width = images.shape[1:3]
    extra_height, extra_width = -height % multiple, -width % multiple
    top, left = extra_height // 2, extra_width // 2
    padding = ((0, 0), (top, extra_height - top), (left, extra_width - left), (0, 0))
    return np.pad(images, padding), (top, left, top + height, left + width)


def crop_to_region(images: Float[np.ndarray, "b H W c"], region: Region) -> Float[np.ndarray, "b h w c"]:
    """Inverse of `pad_to_multiple`; works on any array that slices, of either framework."""
    top, left, bottom, right = region
    return images[:, top:bottom, left:right, :]
