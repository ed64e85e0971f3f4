"""The photographs that scikit-image ships: enough to train something small without any download."""

from __future__ import annotations

import importlib.resources
import importlib.util
from functools import lru_cache
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from voken_common.data.decode import decode_image
from voken_common.data.errors import DataError
from voken_common.data.sources.base import ImageSource

# The bundled colour photographs. Left out: drawings and charts, grey images, and motorcycle_right.png, which shows
# the scene of motorcycle_left.png a few pixels shifted and would put held-out pixels into training.
PHOTOGRAPHS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)

HELD_OUT_FRACTION = 0.3
"""Width of the strip at the right of every photograph that is held out; 135 pixels of the narrowest one."""

_PLASTIC = 1.324717957244746


class Photographs(ImageSource):
    """One region of every photograph. Sample i is of photograph i mod 8, which is also its label.

    `train` and `held_out` are the left and the right part of each photograph and share no pixel; whatever is resized
    or cropped afterwards starts from one part alone.
    """

    def __init__(self, region: Literal["train", "held_out", "all"], *, crops: int | None = None):
        if importlib.util.find_spec("skimage") is None:
            raise DataError(
                "the bundled photographs come with scikit-image, which is not installed: "
                "pip install 'voken[data]', or choose data.train.kind image_folder"
            )
        self._region = region
        self._crops = crops

    def __len__(self) -> int:
        return len(PHOTOGRAPHS) if self._crops is None else self._crops

    def read(self, index: int) -> tuple[UInt8[np.ndarray, "h w 3"], int]:
        """The region of the photograph at full resolution, and the number of the photograph."""
        number = self.image_index(index)
        photograph = load_photograph(PHOTOGRAPHS[number])
        boundary = round(photograph.shape[1] * (1 - HELD_OUT_FRACTION))
        columns = {"train": slice(None, boundary), "held_out": slice(boundary, None), "all": slice(None)}
        return photograph[:, columns[self._region]], number

    def key(self, index: int) -> str:
        """File, region and number of the sample among those of the photograph."""
        return f"{PHOTOGRAPHS[self.image_index(index)]}[{self._region}]#{index // len(PHOTOGRAPHS)}"

    def image_index(self, index: int) -> int:
        """Number of the photograph."""
        return index % len(PHOTOGRAPHS)

    def crop_position(self, index: int) -> tuple[float, float] | None:
        """Points of the two-dimensional additive recurrence of the plastic number, which fill the square evenly."""
        if self._crops is None:
            return None
        turn = index // len(PHOTOGRAPHS)
        return (0.5 + turn / _PLASTIC) % 1.0, (0.5 + turn / _PLASTIC**2) % 1.0

    def evaluation_index(self, rank: int) -> int:
        """The order of the samples: it already takes the photographs in turn."""
        return rank

    def describe(self) -> str:
        """One line for the log."""
        crops = "one central crop each" if self._crops is None else f"{self._crops} crops per epoch"
        return f"{len(PHOTOGRAPHS)} photographs of scikit-image, region {self._region}, {crops}"


@lru_cache(maxsize=len(PHOTOGRAPHS))
def load_photograph(name: str) -> UInt8[np.ndarray, "h w 3"]:
    """A bundled photograph, read-only.

    Raises:
      DataError: this version of scikit-image does not bundle it.
    """
    resource = importlib.resources.files("skimage.data") / name
    if not resource.is_file():
        raise DataError(f"this scikit-image does not bundle {name}: install scikit-image >= 0.24 as `voken[data]` asks")
    image = decode_image(resource.read_bytes(), name=name)
    image.setflags(write=False)
    return image
