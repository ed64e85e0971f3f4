"""Image sources: what images there are, and the bytes or pixels of each, by random access.

A source follows Grain's RandomAccessDataSource protocol (`len`, `[index]`) and is cheap to send to worker processes:
it holds names, not images. Nothing here decodes, resizes or shuffles.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import UInt8

from voken_common.config.data import (
    ImageFolderConfig,
    ImageNetTarConfig,
    ListFileConfig,
    SkimageConfig,
    SourceConfig,
    TarConfig,
    TFDSConfig,
    VideoFolderConfig,
)


@dataclasses.dataclass(frozen=True)
class Share:
    """Neighbouring samples of a source that together make up a given share of training."""

    start: int
    length: int
    weight: float


class ImageSource(abc.ABC):
    """Images with labels, addressed by an index from 0 to len - 1."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """Samples per epoch; at least one."""

    @abc.abstractmethod
    def read(self, index: int) -> tuple[bytes | UInt8[np.ndarray, "h w 3"], int]:
        """The encoded image, or its RGB bytes, and its class (0 where there are no classes).

        Raises:
          OSError: it cannot be read.
        """

    @abc.abstractmethod
    def key(self, index: int) -> str:
        """The path or name by which messages call the sample."""

    @abc.abstractmethod
    def describe(self) -> str:
        """One line for the log: what this is and how much of it."""

    def folder(self, index: int) -> str | None:
        """The local folder without which nothing that lies beside the sample can be read; None: there is no such."""
        return None

    def image_index(self, index: int) -> int:
        """Number of the image that the sample is cut from; samples may share one."""
        return index

    def crop_position(self, index: int) -> tuple[float, float] | None:
        """Where a crop that is not random lies, (0, 0) top left to (1, 1) bottom right; None: in the centre."""
        return None

    def shares(self) -> tuple[Share, ...] | None:
        """Parts of the source that training mixes by weight; None: every sample counts the same."""
        return None

    def order_fingerprint(self) -> int | None:
        """A number that changes with whatever else than the length decides which sample an index is."""
        return None

    def evaluation_index(self, rank: int) -> int:
        """Sample at place `rank` of the evaluation order, a permutation of which every beginning is representative.

        Sources list their samples class by class, so that the first hundred would show a class or two.
        """
        return spread_evenly(rank, len(self))

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, label = self.read(index)
        return {"image": image, "label": label, "key": self.key(index)}


def spread_evenly(rank: int, length: int) -> int:
    """Place `rank` of a permutation of 0 to length - 1 stepping by the golden section: it visits all regions evenly."""
    stride = max(1, round(length * (math.sqrt(5) - 1) / 2))
    while math.gcd(stride, length) != 1:
        stride += 1
    return rank * stride % length


def build_source(config: SourceConfig) -> ImageSource:
    """Open the source that a configuration names.

    Raises:
      DataError: it is not there or not of the expected form; the message says what was found and what was expected.
    """
    # Imported here because each kind may need a package that the others do not.
    match config:
        case ImageFolderConfig():
            from voken_common.data.sources.folder import ImageFolder

            return ImageFolder(config.path, exclude=config.exclude, list_cache=config.list_cache)
        case ListFileConfig():
            from voken_common.data.sources.folder import ListFile

            return ListFile(config.path, root=config.root)
        case TFDSConfig():
            from voken_common.data.sources.tfds import TFDSSource

            return TFDSSource(config)
        case SkimageConfig():
            from voken_common.data.sources.skimage import Photographs

            return Photographs(config.region, crops=config.crops)
        case TarConfig():
            from voken_common.data.sources.tar import TarSource

            return TarSource(config)
        case ImageNetTarConfig():
            from voken_common.data.sources.imagenet_tar import ImageNetTar

            return ImageNetTar(config)
        case VideoFolderConfig():
            from voken_common.data.sources.video import VideoFolder

            return VideoFolder(config)
    raise AssertionError(config)
