"""Encoded bytes or a file to RGB bytes, whatever the mode of the image."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, features

from voken_common.data.errors import ImageDecodeError
from voken_common.untrusted.files import open_regular

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"),
    *((".avif",) if "avif" in features.get_supported_modules() else ()),
)
MAX_ASPECT = 256
"""No photograph comes near; resizing the short side of a line of pixels would need gigabytes."""
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", *(("AVIF",) if IMAGE_SUFFIXES[-1] == ".avif" else ()))
"""Those of `IMAGE_SUFFIXES`. Pillow knows forty more and looks at the content alone: PostScript starts Ghostscript."""
_SIXTEEN_BIT_MODES = frozenset({"I;16", "I;16B", "I;16L", "I;16N"})


def is_image_name(name: str) -> bool:
    """Tell by its suffix whether a file without its folder is an image; hidden files are none."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def decode_image(
    source: bytes | str | os.PathLike[str], *, name: str | None = None, exif_rotate: bool = False
) -> UInt8[np.ndarray, "h w 3"]:
    """Decode an image to RGB.

    Grey, palette and CMYK images are converted as Pillow does; an alpha channel is dropped, not composited (as in the
    reference, so that figures compare); of 16 bits the upper 8 are kept; of an animation the first frame.
    An EXIF orientation never prevents decoding, and is obeyed only with `exif_rotate`: the pixels are otherwise
    returned in the order in which they are stored, as the reference reads them.

    Args:
      source: the encoded bytes, or the path of a file.
      name: what error messages call the image; the path by default.
      exif_rotate: turn the image upright by its EXIF orientation tag.

    Raises:
      ImageDecodeError: unreadable, not an image, truncated, or of a pixel type that has no agreed range.
    """
    image = open_image(source, name=name, exif_rotate=exif_rotate)
    return np.array(image)


def open_image(
    source: bytes | str | os.PathLike[str],
    *,
    name: str | None = None,
    exif_rotate: bool = False,
    short_side: int | None = None,
) -> Image.Image:
    """As `decode_image`, but the pixels stay with Pillow: cheaper where Pillow goes on to resize them.

    Args:
      source, name, exif_rotate: as of `decode_image`.
      short_side: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, as long as its shorter side keeps this many
        pixels; None: never.

    Returns:
      a loaded image of mode RGB.

    Raises:
      ImageDecodeError: as `decode_image`.
    """
    if name is None:
        name = "image bytes" if isinstance(source, bytes) else os.fspath(source)
    if isinstance(source, bytes) and not source:
        raise ImageDecodeError(f"{name}: the file is empty")
    try:
        with identified(source) as image:
            if short_side is not None:
                # Not the mode: asking for one would decode grey images to something else.
                image.draft(None, (short_side, short_side))
            image.load()
            return _as_rgb(ImageOps.exif_transpose(image) if exif_rotate else image)
    except ImageDecodeError as error:
        raise ImageDecodeError(f"{name}: {error}") from error
    except Exception as error:
        # Damaged files make the decoders raise nearly anything (OSError, SyntaxError, struct.error, ...); all of it
        # means the same here, and none of it may end a run that is allowed to skip the file.
        raise ImageDecodeError(f"{name}: {reason_of(error)}") from error


@contextlib.contextmanager
def identified(source: bytes | str | os.PathLike[str]) -> Iterator[Image.Image]:
    """An image of one of `FORMATS`, opened and not decoded; closed after the block. Nothing else of voken opens images.

    Raises:
      OSError: not there, no regular file, or not an image of these formats.
    """
    with io.BytesIO(source) if isinstance(source, bytes) else open_regular(os.fspath(source)) as file:
        with Image.open(file, formats=FORMATS) as image:
            yield image


def to_rgb(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """RGB bytes of an opened image, as `decode_image` gives them.

    Raises:
      ImageDecodeError: a pixel type that has no agreed range.
    """
    return np.array(_as_rgb(image))


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode in _SIXTEEN_BIT_MODES:
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "I":
        return Image.fromarray(_integers_to_bytes(np.asarray(image))).convert("RGB")
    if image.mode == "F":
        raise ImageDecodeError(
            "floating-point pixels have no agreed range; expected integers: convert it to 8 or 16 bits"
        )
    # Without the entry Pillow neither warns nor composites: palette colours stay as they are.
    image.info.pop("transparency", None)
    return image.convert("RGB")


def _integers_to_bytes(values: np.ndarray) -> UInt8[np.ndarray, "h w"]:
    """Pillow's mode I: integers that came from a file of 16 bits, or of 32 with an unknown range."""
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ImageDecodeError(
            f"integer pixels from {values.min()} to {values.max()}; expected 0 to 65535: convert it to 8 or 16 bits"
        )
    return (values >> 8).astype(np.uint8)


def reason_of(error: Exception) -> str:
    """Describe a decoder's error without the names of objects in memory."""
    text = str(error)
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, IsADirectoryError):
        return "is a directory, not a file"
    if "cannot identify image file" in text:
        return "not an image in a known format"
    return text or type(error).__name__
