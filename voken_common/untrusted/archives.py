"""Zip archives of others: bounded before anything in them is read."""

from __future__ import annotations

import os
import struct
import zipfile
from pathlib import Path
from typing import IO

from voken_common.untrusted.files import open_regular
from voken_common.untrusted.limits import LimitError
from voken_common.untrusted.text import shown

LARGEST_DIRECTORY = 16 << 20
"""Bytes of the table of contents: two hundred thousand members, for each of which Python makes objects."""
ALLOWANCE = 64 << 20
"""Bytes that a small archive may unpack to."""
RATIO = 20
"""How many times larger than the archive what it unpacks to may be, beyond the allowance. Weights hardly shrink."""

_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")


def open_zip(file: IO[bytes]) -> zipfile.ZipFile:
    """Open an archive, whose members together unpack to no more than the file's size allows.

    Args:
        file: a regular file from its beginning.

    Raises:
        LimitError: it could unpack to more, or its table of contents is too large.
        zipfile.BadZipFile, OSError: it is no archive, or cannot be read.
    """
    size = os.fstat(file.fileno()).st_size
    _require_small_directory(file, size)
    archive = zipfile.ZipFile(file)
    unpacked = sum(info.file_size for info in archive.infolist())
    if unpacked > ALLOWANCE + RATIO * size:
        archive.close()
        raise LimitError(
            f"an archive of {size} bytes that says it unpacks to {unpacked}; expected at most "
            f"{ALLOWANCE + RATIO * size}. It is damaged or was made to do harm"
        )
    return archive


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, largest: int) -> bytes:
    """All of a member.

    Args:
        archive: of `open_zip`.
        info: of the member.
        largest: bytes that it may have.

    Raises:
        LimitError: it has more.
    """
    with archive.open(info) as member:
        data = member.read(largest + 1)
    if len(data) > largest:
        raise LimitError(f"{shown(info.filename)} in it has more than {largest} bytes, the most that are expected")
    return data


def require_modest(path: str | Path) -> None:
    """Raise LimitError for an archive that would unpack to far more than it is; files that are no archives pass.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    with open_regular(path) as file:
        if zipfile.is_zipfile(file):
            open_zip(file).close()


def _require_small_directory(file: IO[bytes], size: int) -> None:
    """Raise before the standard library makes objects of a table of contents that is too large."""
    tail = min(size, _END.size + 0xFFFF + _LOCATOR.size)
    file.seek(size - tail)
    data = file.read(tail)
    file.seek(0)
    position = data.rfind(b"PK\5\6")
    if position < 0 or position + _END.size > len(data):
        return
    directory = _END.unpack_from(data, position)[5]
    if position >= _LOCATOR.size and data[position - _LOCATOR.size : position].startswith(b"PK\6\7"):
        offset = _LOCATOR.unpack_from(data, position - _LOCATOR.size)[2]
        if offset + _END_64.size <= size:
            file.seek(offset)
            wide = _END_64.unpack(file.read(_END_64.size))
            file.seek(0)
            directory = max(directory if directory != 0xFFFFFFFF else 0, wide[8])
    if directory > LARGEST_DIRECTORY:
        raise LimitError(f"an archive with a table of contents of {directory} bytes; expected a checkpoint's")
