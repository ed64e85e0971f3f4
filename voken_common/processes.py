"""The processes that train together, as one of them sees them."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

logger = logging.getLogger("voken")


def _nothing(_: Any) -> list[Any]:
    return []


@dataclasses.dataclass(frozen=True)
class Processes:
    """The number of this process and the ways in which all of them agree; the default is a process by itself.

    Attributes:
        index: number of this process, from 0.
        count: all of them.
        gather: called by all with one object each; gives those of the others, in order.
        any: called by all with one flag each; tells whether any is set.
    """

    index: int = 0
    count: int = 1
    gather: Callable[[Any], list[Any]] = _nothing
    any: Callable[[bool], bool] = bool

    @property
    def first(self) -> bool:
        """True on the process that speaks and writes for all."""
        return self.index == 0

    @property
    def alone(self) -> bool:
        """True where there are no others."""
        return self.count == 1

    def tell(self, message: str, *values: object) -> None:
        """Write a line into the first process's log."""
        if self.first:
            logger.info(message, *values)
