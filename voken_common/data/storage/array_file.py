"""Named arrays in one file, mapped into memory: worker processes share the pages instead of holding a copy each.

The file is a safetensors file whose metadata holds one JSON object and a checksum of the arrays.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from voken_common.atomic_write import replacing
from voken_common.errors import UserError
from voken_common.untrusted.files import open_regular
from voken_common.untrusted.json_text import loads

_KEY = "arrays"
_BEGINNING = b'{"__metadata__":{"arrays":"'
"""After its length, how the header of every such file begins, a damaged one too as a rule."""
_LONGEST_HEADER = 64 << 20
_TYPES = {"I64": np.int64, "U32": np.uint32, "I32": np.int32, "U8": np.uint8}


class ArrayFileError(UserError):
    """Not such a file, or a damaged one."""


def write_arrays(path: str | Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
    """Write int64, uint32, int32 or uint8 arrays and a JSON object; the file is replaced as a whole.

    Raises:
      OSError: it cannot be written; or something lies there that is not such a file, and stays.
    """
    require_replaceable(path)
    # One entry: of several, the order in the file would differ from run to run.
    metadata = {_KEY: json.dumps({"crc32": _checksum(arrays), "about": about}, ensure_ascii=True)}
    data = safetensors.numpy.save(dict(arrays), metadata)
    with replacing(path) as file:
        file.write(data)


def require_replaceable(path: str | Path) -> None:
    """Raise OSError unless there is nothing at a path, or an array file.

    The path may come from a configuration that somebody else wrote, and the arrays hold names that they chose: any
    other file stays what it is, and no file that programs look for by a name like `.profile` appears.
    """
    name = os.path.basename(path)
    if name.startswith(".") or not os.path.splitext(name)[1]:
        raise OSError(errno.EINVAL, "is no name for a kept list: expected one like NAME.list or NAME.index", str(path))
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    if not stat.S_ISREG(found.st_mode):
        raise FileExistsError(errno.EEXIST, "a link, folder or device is there, which is not replaced", str(path))
    with open_regular(path) as file:
        start = file.read(8 + len(_BEGINNING))
    if start and start[8:] != _BEGINNING:
        raise FileExistsError(
            errno.EEXIST, "another file is there, which is not replaced: name another, or remove it", str(path)
        )


def _header(path: str | Path) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """(where the arrays begin, their entries, the JSON object beside them).

    Raises:
      OSError: it cannot be opened.
      ValueError, KeyError, TypeError, AttributeError: it is not of this form.
    """
    with open_regular(path) as file:
        size = int.from_bytes(file.read(8), "little")
        if not 0 < size < min(_LONGEST_HEADER, os.fstat(file.fileno()).st_size):
            raise ArrayFileError("no header")
        text = file.read(size)
    header = loads(text)
    return 8 + size, header, loads(header.pop("__metadata__")[_KEY])


def map_arrays(path: str | Path, *, verify: bool = True) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The read-only arrays of a file and its JSON object.

    Args:
      path: the file.
      verify: read all of it once and compare the checksum; about a second per gigabyte.

    Raises:
      OSError: it cannot be opened.
      ArrayFileError: it is not of this form, its end is missing, or its checksum is wrong.
    """
    try:
        begin, header, metadata = _header(path)
        data = np.memmap(path, np.uint8, "r", offset=begin)
        arrays = {name: _array(data, entry) for name, entry in header.items()}
        if verify and _checksum(arrays) != metadata["crc32"]:
            raise ArrayFileError("its checksum is wrong")
        return arrays, metadata["about"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArrayFileError(f"damaged, or not an array file: {error}") from error


def _checksum(arrays: Mapping[str, np.ndarray]) -> int:
    crc = 0
    for name in sorted(arrays):
        crc = zlib.crc32(np.ascontiguousarray(arrays[name]).view(np.uint8).data, crc)
    return crc


def _array(data: np.ndarray, entry: dict[str, Any]) -> np.ndarray:
    start, end = entry["data_offsets"]
    (length,) = entry["shape"]
    if not all(type(value) is int for value in (start, end, length)):
        raise ArrayFileError("positions that are no whole numbers")
    dtype = np.dtype(_TYPES[entry["dtype"]])
    if not 0 <= start <= end <= len(data) or end - start != length * dtype.itemsize:
        raise ArrayFileError(f"{end} bytes of arrays expected, found {len(data)}")
    return data[start:end].view(dtype)


def pack_strings(strings: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of all strings in one uint8 array, and where each ends."""
    encoded = [string.encode("utf-8", "surrogateescape") for string in strings]
    ends = np.cumsum([len(item) for item in encoded], dtype=np.int64)
    return np.frombuffer(b"".join(encoded), np.uint8), ends


class StringTable(Sequence[str]):
    """An immutable list of strings as one block of bytes: a million paths take 40 MB, here and in every worker."""

    def __init__(self, strings: Iterable[str]):
        self._bytes, self._ends = pack_strings(strings)

    @classmethod
    def of_arrays(cls, data: np.ndarray, ends: np.ndarray) -> StringTable:
        """Over arrays of `pack_strings`, without a copy.

        Raises:
          ArrayFileError: they do not belong together.
        """
        rising = len(ends) == 0 or (int(ends[0]) >= 0 and bool((np.diff(ends) >= 0).all()))
        if (int(ends[-1]) if len(ends) else 0) != len(data) or not rising:
            raise ArrayFileError("strings and their ends do not fit")
        table = cls(())
        table._bytes, table._ends = data, ends
        return table

    def checksum(self) -> int:
        """CRC-32 of the strings and of where each ends."""
        return zlib.crc32(np.ascontiguousarray(self._ends).view(np.uint8).data, zlib.crc32(self._bytes.data))

    def __len__(self) -> int:
        return len(self._ends)

    # Of a Sequence's slices nobody makes use.
    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        start = int(self._ends[index - 1]) if index else 0
        return self._bytes[start : int(self._ends[index])].tobytes().decode("utf-8", "surrogateescape")
