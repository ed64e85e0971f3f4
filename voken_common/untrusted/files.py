"""Opening files whose names came out of a file: regular ones only, and no more bytes than are wanted.

A list, an index or a folder may name a device that never ends, a pipe that nobody writes to, or a link to either.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import IO

LARGEST_TEXT = 64 << 20
"""Bytes of a configuration, a JSON description or a similar file that is read whole."""
LARGEST_IMAGE = 1 << 30
"""Bytes of one encoded image."""
LARGEST_LIST = 2 << 30
"""Bytes of a list of files: tens of millions of lines."""


def open_descriptor(path: str | Path) -> int:
    """Open a regular file for reading; links to one are followed.

    Raises:
        OSError: it is not there, cannot be opened, or is a device, pipe, socket or folder (EINVAL).
    """
    # Opening a pipe would wait for somebody who writes to it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0) | os.O_NOCTTY)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise not_regular(path)
    return descriptor


def open_regular(path: str | Path) -> IO[bytes]:
    """`open_descriptor` as a binary file."""
    return os.fdopen(open_descriptor(path), "rb")


def read_bytes(path: str | Path, largest: int = LARGEST_TEXT) -> bytes:
    """All of a regular file.

    Args:
        path: of the file.
        largest: bytes that it may have.

    Raises:
        OSError: as `open_descriptor`; or it is larger (EFBIG).
    """
    with open_regular(path) as file:
        # As much as is there: a larger number would be taken from memory at once.
        size = os.fstat(file.fileno()).st_size
        data = file.read(size + 1) if size <= largest else b""
    if max(size, len(data)) > largest:
        raise OSError(errno.EFBIG, f"more than {largest} bytes, the most that such a file may have", str(path))
    return data


def read_text(path: str | Path, largest: int = LARGEST_TEXT) -> str:
    """`read_bytes` as UTF-8.

    Raises:
        OSError: as `read_bytes`.
        UnicodeDecodeError: it is no UTF-8.
    """
    return read_bytes(path, largest).decode("utf-8")


def not_regular(path: str | Path) -> OSError:
    """The error for what is no regular file."""
    if os.path.isdir(path):
        return IsADirectoryError(errno.EISDIR, "is a folder, expected a file", str(path))
    return OSError(errno.EINVAL, "is no regular file (a device, pipe or socket)", str(path))
