"""A stop of several processes, from Ctrl-C, SIGTERM or a cluster's preemption notice."""

from __future__ import annotations

import os
import signal

from jax.experimental import multihost_utils

from voken_common.processes import Processes
from voken_common.training.log import StopRequest
from voken_common.training.stop import AgreedStop


class PreemptionStop(AgreedStop):
    """Tells after each step whether a run of several processes is to stop; a context manager.

    A signal is handed to JAX's preemption service, which takes SIGTERM as its notice and names a step that no process
    has passed yet, so that all of them save the same one.
    """

    def __init__(self, processes: Processes) -> None:
        super().__init__(processes)
        self._request = StopRequest((signal.SIGINT,))
        self._forwarded = False
        self._steps = 0

    def agreed(self) -> bool:
        """Tell whether to save and stop now; every process calls it after every step that it starts."""
        # Counted here: the number of a step comes again after one that was refused, and the processes would stop apart.
        self._steps += 1
        if self._request.requested and not self._forwarded:
            self._forwarded = True
            os.kill(os.getpid(), signal.SIGTERM)
        return multihost_utils.reached_preemption_sync_point(self._steps)
