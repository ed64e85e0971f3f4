"""The base of all image sources: what images there are, and the bytes or pixels of each, by random access.

A source follows Grain's RandomAccessDataSource protocol (`len`, `[index]`) and is cheap to send to worker processes:
it holds names, not images. Nothing here decodes, resizes or shuffles.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8

from voken_common.data.labels import numbers_in, warn_unnamed


@dataclasses.dataclass(frozen=True)
class Share:
    """Neighbouring samples of a source that together make up a given share of training."""

    start: int
    length: int
    weight: float


class ImageSource(abc.ABC):
    """Images with labels, addressed by an index from 0 to len - 1.

    Attributes:
      classes: names of the classes by number; empty where they have none.
    """

    classes: tuple[str, ...] = ()

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
        """Position of a crop that is not random, (0, 0) top left to (1, 1) bottom right; None: the centre."""
        return None

    def shares(self) -> tuple[Share, ...] | None:
        """Parts of the source that training mixes by weight; None: every sample counts the same."""
        return None

    def order_fingerprint(self) -> int | None:
        """A number that changes with whatever else than the length decides which sample an index is."""
        return None

    def adopt_classes(self, names: tuple[str, ...], reference: str) -> None:
        """Number the classes as another source does, by their names; without names on both sides nothing changes.

        Args:
          names: of the other source's classes, by number.
          reference: what messages call it.

        Raises:
          DataError: there are samples of a class that the other source has not.
        """
        where = self.describe()
        if bool(self.classes) != bool(names):
            warn_unnamed(where, reference)
        if not self.classes or not names or self.classes == names:
            return
        self._renumber(numbers_in(names, self.classes, self._used(), where=where, reference_where=reference))
        self.classes = names

    def _used(self) -> Iterable[int]:
        """Numbers of the classes of which there is a sample; all of them where finding out would mean reading them."""
        return range(len(self.classes))

    def _renumber(self, numbers: Int32[np.ndarray, " k"]) -> None:
        """Give class i the number `numbers[i]` from now on."""
        raise NotImplementedError(type(self).__name__)

    def evaluation_index(self, rank: int) -> int:
        """Return sample `rank` of the evaluation order, a permutation of which every beginning is representative.

        Sources list their samples class by class, so that the first hundred would show a class or two.
        """
        return spread_evenly(rank, len(self))

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, label = self.read(index)
        return {"image": image, "label": label, "key": self.key(index)}


def spread_evenly(rank: int, length: int) -> int:
    """Return element `rank` of a permutation that steps by the golden section and visits all regions evenly."""
    stride = max(1, round(length * (math.sqrt(5) - 1) / 2))
    while math.gcd(stride, length) != 1:
        stride += 1
    return rank * stride % length
