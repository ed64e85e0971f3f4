"""Decoded images that become PIL images and files; each framework adds its kind of array."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from voken_common.atomic_write import replacing
from voken_common.errors import UserError
from voken_common.pixels import to_uint8


class Pictures:
    """Images in [-1, 1], one or a batch, with ways out of the framework."""

    def channels_last(self) -> np.ndarray:
        """The images as a NumPy array (H, W, C) or (B, H, W, C)."""
        raise NotImplementedError

    def to_uint8(self) -> np.ndarray:
        """The images as bytes, channels last, rounded as the reference rounds them."""
        images = self.channels_last()
        if images.ndim not in (3, 4):
            raise UserError(f"shape {images.shape} is neither an image (H, W, C) nor a batch (B, H, W, C)")
        return to_uint8(images)

    def to_pil(self) -> Any:
        """A PIL image, or a list of them for a batch."""
        pixels = self.to_uint8()
        return _pil(pixels) if pixels.ndim == 3 else [_pil(image) for image in pixels]

    def save(self, path: str | Path) -> list[Path]:
        """Write image files; nothing half-written is left.

        Args:
            path: of one image, a file such as `out.png`; of a batch, a folder that gets `00000.png`, `00001.png`, ...
                The suffix says the format.

        Returns:
            the files.

        Raises:
            UserError: a batch and the path of one file, or a suffix of no image format.
        """
        path, pictures = Path(path), self.to_pil()
        if isinstance(pictures, Image.Image):
            return [_write(path, pictures)]
        if len(pictures) == 1 and path.suffix:
            return [_write(path, pictures[0])]
        if path.suffix.lower() in Image.registered_extensions():
            raise UserError(f"{path} is one file, and these are {len(pictures)} images: name a folder")
        return [_write(path / f"{number:05d}.png", picture) for number, picture in enumerate(pictures)]


def _pil(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def _write(path: Path, picture: Image.Image) -> Path:
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind is None or kind not in Image.SAVE:
        raise UserError(f"{path}: the suffix of an image file is expected, such as .png")
    with replacing(path) as file:
        picture.save(file, kind)
    return path
