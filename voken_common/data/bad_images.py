"""The policy for images that do not decode: report each once, count them, and stop when there are too many."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable

from voken_common.data.errors import TooManyBadImagesError

logger = logging.getLogger("voken.data")

_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class BadImage:
    """An image of a source that did not decode, and why; the reason starts with its path."""

    index: int
    reason: str


class BadImageLimit:
    """Limit on the bad images of a source."""

    def __init__(self, length: int, max_fraction: float):
        self._length = length
        self._max_fraction = max_fraction
        # A hair more, so that 0.29 of 100 allows 29 and not 28. On a small set one bad file does not end a run, unless
        # none is allowed at all, or it is the only one.
        some = max(1, int(max_fraction * length + 1e-9)) if max_fraction else 0
        self.allowed = min(some, length - 1)

    def check(self, bad: Iterable[BadImage]) -> None:
        """Raise TooManyBadImagesError if these distinct images are more than allowed."""
        bad = list(bad)
        if len(bad) <= self.allowed:
            return
        listed = "".join(f"\n  {image.reason}" for image in bad[:_SHOWN])
        more = f"\n  and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise TooManyBadImagesError(
            f"found {len(bad)} of {self._length} images that cannot be decoded; data.max_bad_fraction "
            f"{self._max_fraction:g} allows {self.allowed}:{listed}{more}\n"
            "Repair or remove these files (`exclude` of an image folder leaves out names), "
            "or raise data.max_bad_fraction."
        )


class BadImageLog:
    """Counts the bad images that a process met, over all its worker processes."""

    def __init__(self, limit: BadImageLimit, *, consequence: str):
        self._limit = limit
        self._consequence = consequence
        self._bad: dict[int, BadImage] = {}

    def __len__(self) -> int:
        return len(self._bad)

    def record(self, images: Iterable[BadImage]) -> None:
        """Report the images not met before.

        Raises:
          TooManyBadImagesError: with these there are more than the limit.
        """
        for image in images:
            if image.index in self._bad:
                continue
            self._bad[image.index] = image
            logger.warning(
                "%s; %s (bad image %d, %d allowed)",
                image.reason,
                self._consequence,
                len(self._bad),
                self._limit.allowed,
            )
            self._limit.check(self._bad.values())
