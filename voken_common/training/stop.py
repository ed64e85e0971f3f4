"""A stop that all processes agree on, from Ctrl-C or SIGTERM."""

from __future__ import annotations

from types import TracebackType

from voken_common.processes import Processes
from voken_common.training.log import StopRequest


class AgreedStop:
    """Tells after each step whether a run is to stop; a context manager.

    Args:
        processes: those that have to agree: one that got a signal stops all.
    """

    def __init__(self, processes: Processes) -> None:
        self._any, self._request = processes.any, StopRequest()

    def __enter__(self) -> AgreedStop:
        self._request.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._request.__exit__(kind, error, trace)

    def agreed(self) -> bool:
        """Tell whether to save and stop now; every process calls it after every step that it starts."""
        return self._any(self._request.requested)
