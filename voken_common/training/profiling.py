"""A trace of some steps, for `--profile`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

logger = logging.getLogger("voken")

FOLDER = "profile"
WARM_UP = 3
"""Steps before the trace: the first ones compile."""


class Profiler:
    """Traces some steps of a run after a few others; a context manager.

    Args:
        folder: where the trace goes.
        steps: how many; 0: none.
        start: starts a trace.
        stop: ends it and writes it.

    Raises:
        ValueError: fewer than no steps.
    """

    def __init__(self, folder: Path, steps: int, start: Callable[[], object], stop: Callable[[], object]):
        if steps < 0:
            raise ValueError(f"--profile {steps}: expected a number of steps, 0 for none")
        self._folder, self._left, self._wait, self._running = folder, steps, WARM_UP, False
        self._start, self._stop = start, stop

    def before_step(self) -> None:
        """Call it before every step; the trace starts and ends here."""
        if self._running:
            self._left -= 1
            if self._left == 0:
                self._end()
        elif self._left and self._wait:
            self._wait -= 1
        elif self._left:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._start()
            self._running = True

    def _end(self) -> None:
        if self._running:
            self._running, self._left = False, 0
            self._stop()
            logger.info("the trace is in %s", self._folder)

    def __enter__(self) -> Profiler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        if self._left and kind is None:
            logger.warning("no trace was made: the run had no more than %d steps left", WARM_UP)
