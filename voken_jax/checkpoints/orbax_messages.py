"""Report a failed write or read once, by our own error: Orbax and TensorStore repeat it per array, with a trace each.

Three places speak without being asked, when a disk is full: the thread of every array handler logs what it raises, and
raises it too; asyncio logs the writes that nobody waited for any more; and TensorStore cannot report the others to an
event loop that is closed by then. Of a damaged step, reads of further arrays fail when the first has been told, and
Python reports each coroutine that ends so. All of that is the one error which the call of Orbax raises.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from types import CoroutineType
from typing import Any

_REPEATED = {"absl": "_SignalingThread.run() raised an exception", "asyncio": "exception was never retrieved"}
"""Logger -> what stands in the records that only repeat."""
_LATE = "Event loop is closed"
_ORBAX = os.path.join("orbax", "checkpoint")


class _OnlyNews(logging.Filter):
    def __init__(self, repeated: str):
        super().__init__()
        self._repeated = repeated

    def filter(self, record: logging.LogRecord) -> bool:
        return not (self._repeated in record.getMessage() and _is_of_orbax(record))


@functools.cache
def hush() -> None:
    """Leave those repetitions out of the logs from now on, and everything else in."""
    for name, repeated in _REPEATED.items():
        logging.getLogger(name).addFilter(_OnlyNews(repeated))
    before = sys.unraisablehook

    def only_news(unraisable: Any) -> None:
        error, place = unraisable.exc_value, unraisable.object
        late = isinstance(error, RuntimeError) and str(error) == _LATE
        if not late and not (isinstance(place, CoroutineType) and _ORBAX in place.cr_code.co_filename):
            before(unraisable)

    sys.unraisablehook = only_news


def _is_of_orbax(record: logging.LogRecord) -> bool:
    """True if a log record comes from Orbax, or its error passed through Orbax."""
    trace = record.exc_info[2] if record.exc_info else None
    files = [record.pathname]
    while trace is not None:
        files.append(trace.tb_frame.f_code.co_filename)
        trace = trace.tb_next
    return any(_ORBAX in file for file in files)
