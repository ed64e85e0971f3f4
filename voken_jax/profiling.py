"""A trace of some steps, for `--profile`."""

from __future__ import annotations

import logging
from pathlib import Path
from types import TracebackType

import jax

logger = logging.getLogger("voken")

FOLDER = "profile"
WARM_UP = 3
"""Steps before the trace: the first ones compile."""


class Profiler:
    """Traces some steps of a run with `jax.profiler`, after a few others; a context manager.

    Args:
        workdir: the trace goes to its `profile` folder, for TensorBoard's profile plugin or Perfetto.
        steps: how many; 0: none.
    """

    def __init__(self, workdir: Path, steps: int):
        self._folder, self._left, self._wait, self._running = workdir / FOLDER, steps, WARM_UP, False

    def before_step(self) -> None:
        """Call it before every step; the trace starts and ends here."""
        if self._running:
            self._left -= 1
            if self._left == 0:
                self._end()
        elif self._left and self._wait:
            self._wait -= 1
        elif self._left:
            self._running = True
            jax.profiler.start_trace(str(self._folder))

    def _end(self) -> None:
        if self._running:
            self._running, self._left = False, 0
            jax.effects_barrier()
            jax.profiler.stop_trace()
            logger.info("the trace is in %s", self._folder)

    def __enter__(self) -> Profiler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
