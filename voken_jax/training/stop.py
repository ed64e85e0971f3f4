"""A stop that all processes agree on, from Ctrl-C, SIGTERM or a cluster's preemption notice."""

from __future__ import annotations

import os
import signal
from types import TracebackType

import jax
import numpy as np
from jax.experimental import multihost_utils

from voken_common.training.log import StopRequest


class AgreedStop:
    """Whether the run is to stop after this step; a context manager.

    One process stops at the first signal. Several hand it to JAX's preemption service, which takes SIGTERM as its
    notice and names a step that no process has passed yet, so that all of them save the same one.
    """

    def __init__(self) -> None:
        self._several = jax.process_count() > 1
        self._request = StopRequest((signal.SIGINT,) if self._several else (signal.SIGINT, signal.SIGTERM))
        self._forwarded = False
        self._steps = 0

    def __enter__(self) -> AgreedStop:
        self._request.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._request.__exit__(kind, error, trace)

    def agreed(self, _: int) -> bool:
        """Whether to save and stop after this step; every process calls it after every step that it starts."""
        # Counted here: the number of a step comes again after one that was refused, and the processes would stop apart.
        self._steps += 1
        if not self._several:
            return self._request.requested
        if self._request.requested and not self._forwarded:
            self._forwarded = True
            os.kill(os.getpid(), signal.SIGTERM)
        return multihost_utils.reached_preemption_sync_point(self._steps)


def any_process(flag: bool) -> bool:
    """Whether the flag is set on any process; all of them call it."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))
