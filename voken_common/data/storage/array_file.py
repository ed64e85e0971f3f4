"""Named arrays in one file, mapped into memory: worker processes share the pages instead of holding a copy each.

The file is a safetensors file whose metadata holds one JSON object and a checksum of the arrays.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from voken_common.atomic_write import replacing
from voken_common.errors import UserError

_KEY = "arrays"
_LONGEST_HEADER = 1 << 30
_TYPES = {"I64": np.int64, "U32": np.uint32, "I32": np.int32, "U8": np.uint8}


class ArrayFileError(UserError):
    """Not such a file, or a damaged one."""


def write_arrays(path: str | Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
    """Write int64, uint32, int32 or uint8 arrays and a JSON object; the file is replaced as a whole.

    Raises:
      OSError: it cannot be written.
    """
    # One entry: of several, the order in the file would differ from run to run.
    metadata = {_KEY: json.dumps({"crc32": _checksum(arrays), "about": about}, ensure_ascii=True)}
    data = safetensors.numpy.save(dict(arrays), metadata)
    with replacing(path) as file:
        file.write(data)


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
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if not 0 < size < _LONGEST_HEADER:
                raise ArrayFileError("no header")
            header = json.loads(file.read(size))
        metadata = json.loads(header.pop("__metadata__")[_KEY])
        data = np.memmap(path, np.uint8, "r", offset=8 + size)
        arrays = {name: _array(data, entry) for name, entry in header.items()}
        if verify and _checksum(arrays) != metadata["crc32"]:
            raise ArrayFileError("its checksum is wrong")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArrayFileError(f"damaged, or not an array file: {error}") from error
    return arrays, metadata["about"]


def _checksum(arrays: Mapping[str, np.ndarray]) -> int:
    crc = 0
    for name in sorted(arrays):
        crc = zlib.crc32(np.ascontiguousarray(arrays[name]).view(np.uint8).data, crc)
    return crc


def _array(data: np.ndarray, entry: dict[str, Any]) -> np.ndarray:
    start, end = entry["data_offsets"]
    (length,) = entry["shape"]
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
        if (int(ends[-1]) if len(ends) else 0) != len(data):
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
