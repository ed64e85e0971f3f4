"""Setup of every command at its start, before a framework allocates memory."""

from __future__ import annotations

import contextlib
import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_KEPT = 2**30
"""Bytes: freed memory up to this stays with the process, and larger arrays are still mapped one by one."""


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next array, where it is glibc; elsewhere do nothing.

    By default it maps every array over 32 MiB anew and gives it back at once, and the kernel clears each of its pages:
    up to a third of the time that a network takes on a CPU.
    """
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _KEPT)
        mallopt(_M_TRIM_THRESHOLD, 2 * _KEPT)
        mallopt(_M_TOP_PAD, 2**26)
