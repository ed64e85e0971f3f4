"""`save` and `push_to_hub` of tokenizers and generators, the same in both frameworks."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from voken_common.checkpoints.hub.sharing import Shared, push_folder, save_folder
from voken_common.checkpoints.steps import Weights
from voken_common.published.models import PublishedModel


@dataclass(frozen=True)
class Known:
    """Description of the checkpoint that a model was loaded from.

    Attributes:
        weights: the set of weights.
        metrics: what its last validation measured, by name.
        model: the published model that it is, if it is one.
    """

    weights: Weights = "ema"
    metrics: Mapping[str, float] = field(default_factory=dict)
    model: PublishedModel | None = None


class Shareable:
    """Models that can be saved to a folder and pushed to a repository. `_to_share` is the class's own."""

    known = Known()

    def _to_share(self, picture: bool) -> tuple[Shared, Shared | None]:
        """The model, and of a generator its tokenizer."""
        raise NotImplementedError

    def save(self, folder: str | Path, *, picture: bool = True, repository: str | None = None) -> Path:
        """Write weights, configuration and a model card into a folder; `load` reads it, in both frameworks.

        Args:
            folder: created where it is not there; files of the same names are replaced.
            picture: make the card's picture, which runs the model once.
            repository: the name under which the card says to load it; that of the folder by default.

        Returns:
            the file of the weights.
        """
        shared, tokenizer = self._to_share(picture)
        return save_folder(folder, shared, tokenizer, repository)

    def push_to_hub(
        self, repository: str, *, private: bool = False, message: str | None = None, picture: bool = True
    ) -> str:
        """Put the model into a repository of the hub, `OWNER/NAME`, under which it then loads.

        Args:
            repository: created where it is not there; needs a token that may write (`hf auth login`, or HF_TOKEN).
            private: of a repository that is created.
            message: of the commit.
            picture: make the card's picture, which runs the model once.

        Returns:
            the address of the commit.

        Raises:
            HubError: no access, or the hub is out of reach.
        """
        with tempfile.TemporaryDirectory(prefix="voken-") as folder:
            self.save(folder, picture=picture, repository=repository)
            return push_folder(folder, repository, private=private, message=message)


def example_images(side: int) -> UInt8[np.ndarray, "b side side 3"]:
    """Two images to show a tokenizer with: photographs where scikit-image is installed, else patterns."""
    try:
        from skimage import data

        found: list[Any] = [data.astronaut(), data.coffee()]
    except (ImportError, OSError):
        ramp = np.linspace(0, 1, 256)
        x, y = np.meshgrid(ramp, ramp)
        found = [
            np.stack([x, y, 1 - x], -1) * 255,
            np.stack([np.sin(20 * x) ** 2, x * y, np.cos(9 * y) ** 2], -1) * 255,
        ]
    return np.stack([_square(np.asarray(image, np.uint8), side) for image in found])


def _square(image: UInt8[np.ndarray, "h w 3"], side: int) -> UInt8[np.ndarray, "side side 3"]:
    from PIL import Image

    size = min(image.shape[:2])
    top, left = ((length - size) // 2 for length in image.shape[:2])
    middle = Image.fromarray(image[top : top + size, left : left + size])
    return np.asarray(middle.resize((side, side), Image.Resampling.BICUBIC))
