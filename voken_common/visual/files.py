"""Write pictures to disk, still or moving."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from jaxtyping import Num, UInt8
from PIL import Image

from voken_common.atomic_write import replacing
from voken_common.visual.style import rgb


def save_png(path: str | Path, picture: Num[np.ndarray, "h w c"], *, below: str | Path | None = None) -> Path:
    """Write a picture or an image as PNG under a temporary name, then rename: viewers never see half a file.

    Folders are created; of those below `below` none may be a link. Returns the path.
    """
    image = Image.fromarray(rgb(picture))
    with replacing(path, below=below) as file:
        image.save(file, format="PNG")
    return Path(path)


def gif(frames: UInt8[np.ndarray, "t h w 3"], rate: float) -> bytes:
    """An animated GIF of `rate` frames per second that starts again at its end."""
    pictures = [Image.fromarray(frame) for frame in frames]
    file = io.BytesIO()
    pictures[0].save(file, format="GIF", save_all=True, append_images=pictures[1:], duration=round(1000 / rate), loop=0)
    return file.getvalue()
