"""The index of a set of tars: where each good image lies, so that any can be read without reading the others.

38 bytes and the name per image, mapped into memory. `python -m voken_common.data.tar.prepare` writes it.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from voken_common.data.errors import DataError, some
from voken_common.data.storage import files as storage
from voken_common.data.storage.array_file import ArrayFileError, StringTable, map_arrays, pack_strings, write_arrays
from voken_common.data.tar.format import BLOCK, TarMember
from voken_common.untrusted.text import shown

INDEX_SUFFIX = ".index"
_VERSION = 1
_HEAD = 4096
_CHECKED_AT_A_TIME = 16
_AGAIN = "run `python -m voken_common.data.tar.prepare` on the set again, which checks only the tars that changed"

_WRITE = "write it with `python -m voken_common.data.tar.prepare SET --output FOLDER` and name FOLDER/SET.index"


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """By what a changed tar is recognised: its size, and its first bytes if its time changed."""

    size: int
    modified: int
    head_crc: int

    @classmethod
    def of(cls, path: str) -> Fingerprint:
        """Take the stamp of a tar as it is now.

        Raises:
          OSError: it cannot be read.
        """
        info = storage.file_info(path)
        return cls(info.size, info.modified, zlib.crc32(_head(path, info.size)))

    def change(self, path: str, now: storage.FileInfo) -> str | None:
        """Describe the difference to the tar at `path`; a copy with another time but the same first bytes is none.

        Raises:
          OSError: it cannot be read.
        """
        if now.size != self.size:
            return f"has {now.size} bytes, had {self.size}"
        if now.modified == self.modified or not (now.modified and self.modified):
            return None
        return None if zlib.crc32(_head(path, now.size)) == self.head_crc else "begins with other bytes"


def _head(path: str, size: int) -> bytes:
    expected = min(_HEAD, size)
    head = storage.read_range(path, 0, expected)
    if len(head) < expected and storage.is_url(path):
        raise _partial(path, len(head), expected)
    return head


def read_member(path: str, start: int, size: int, header_crc: int) -> bytes | None:
    """A member of a tar, of which the position is known; None if something else lies there.

    Raises:
      OSError: it cannot be read, or a store sent a part of it.
    """
    data = storage.read_range(path, start - BLOCK, BLOCK + size)
    if len(data) < BLOCK + size and storage.is_url(path) and storage.file_info(path).size >= start + size:
        raise _partial(path, len(data), BLOCK + size)
    same = len(data) == BLOCK + size and zlib.crc32(data[:BLOCK]) == header_crc
    return data[BLOCK:] if same else None


def _partial(path: str, found: int, expected: int) -> OSError:
    # What a store sends when a connection breaks; a local file would have changed.
    return OSError(errno.EIO, f"{found} of {expected} bytes arrived", path)


@dataclasses.dataclass(frozen=True)
class IndexedTar:
    """A tar and its good images, in the order in which they lie."""

    name: str
    fingerprint: Fingerprint
    members: Sequence[TarMember]


def _file_name(name: Any) -> str:
    """The name of a tar in its folder, which nothing else is taken for."""
    if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\0" in name:
        raise ArrayFileError(f"{shown(name)} is no name of a tar in a folder")
    return name


class IndexColumns:
    """The contents of an index while it is made, tar by tar."""

    def __init__(self) -> None:
        self._tars: list[tuple[str, Fingerprint, int]] = []
        self._start: list[np.ndarray] = []
        self._size: list[np.ndarray] = []
        self._header_crc: list[np.ndarray] = []
        self._names: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, tar: IndexedTar) -> None:
        """Append a tar."""
        self._tars.append((tar.name, tar.fingerprint, len(tar.members)))
        self._start.append(np.array([member.start for member in tar.members], np.int64))
        self._size.append(np.array([member.size for member in tar.members], np.uint32))
        self._header_crc.append(np.array([member.header_crc for member in tar.members], np.uint32))
        self._names.append(pack_strings(member.name for member in tar.members))

    def write(self, path: str | Path, location: str) -> None:
        """Write the index of the tars, which are in this folder or at this URL; at least one.

        Raises:
          OSError: it cannot be written.
        """
        lengths = [np.diff(ends, prepend=0) for _, ends in self._names]
        prints = [fingerprint for _, fingerprint, _ in self._tars]
        arrays: dict[str, np.ndarray] = {
            "first": np.cumsum([0, *(count for _, _, count in self._tars)], dtype=np.int64),
            "start": np.concatenate(self._start),
            "size": np.concatenate(self._size),
            "header_crc": np.concatenate(self._header_crc),
            "name_bytes": np.concatenate([data for data, _ in self._names]),
            "name_ends": np.cumsum(np.concatenate(lengths), dtype=np.int64),
            "tar_size": np.array([entry.size for entry in prints], np.int64),
            "tar_modified": np.array([entry.modified for entry in prints], np.int64),
            "tar_head_crc": np.array([entry.head_crc for entry in prints], np.uint32),
        }
        about = {"version": _VERSION, "location": location, "tars": [name for name, _, _ in self._tars]}
        write_arrays(path, arrays, about)


class TarIndex:
    """An opened index.

    Args:
      path: the `.index` file.
      location: where the tars are; None: where they were when they were indexed, if that is the folder of the index or
        below it. An index may come from somebody else, so no other place that it names is opened.
      verify: compare the checksum of the file.

    Raises:
      DataError: no such file, or a damaged one.
    """

    def __init__(self, path: str, location: str | None = None, *, verify: bool = True):
        self.path = str(Path(path).expanduser())
        try:
            arrays, about = map_arrays(self.path, verify=verify)
            if about["version"] != _VERSION:
                raise DataError(f"tar index {self.path} has version {about['version']}, expected {_VERSION}: {_AGAIN}")
            self.location: str = storage.normalized(location) if location else self._below(about["location"])
            self.tars: tuple[str, ...] = tuple(_file_name(name) for name in about["tars"])
            self._names = StringTable.of_arrays(arrays["name_bytes"], arrays["name_ends"])
            self._first, self._start, self._size = arrays["first"], arrays["start"], arrays["size"]
            self._header_crc = arrays["header_crc"]
            self._fingerprints = (arrays["tar_size"], arrays["tar_modified"], arrays["tar_head_crc"])
            self._check_lengths()
        except OSError as error:
            raise DataError(f"no tar index at {self.path}: {error.strerror}; {_WRITE}") from error
        except (ArrayFileError, KeyError, TypeError) as error:
            # Most likely a tar, or another of the files that lie beside an index.
            advice = _AGAIN if self.path.endswith(INDEX_SUFFIX) else _WRITE
            raise DataError(f"tar index {self.path}: {error}; {advice}") from error

    def _below(self, place: Any) -> str:
        """Return the folder of an index's tars, which must lie below the folder of the index."""
        own = os.path.dirname(os.path.realpath(self.path))
        if isinstance(place, str) and "://" not in place and "\0" not in place:
            found = os.path.join(own, os.path.expanduser(place))
            if os.path.commonpath([own, os.path.realpath(found)]) == own:
                return storage.normalized(found)
        raise DataError(
            f"tar index {self.path} says that its tars are at {shown(place)}, which is not below the folder of the "
            "index. An index is not believed about other places: if they are there, write it as `location` of the set"
        )

    def _check_lengths(self) -> None:
        count = len(self._start)
        columns = {len(self._size), len(self._header_crc), len(self._names), int(self._first[-1])}
        if columns != {count} or {len(column) for column in self._fingerprints} != {len(self.tars)}:
            raise ArrayFileError("its columns have different lengths")
        if len(self._first) != len(self.tars) + 1 or self._first[0] != 0 or (np.diff(self._first) < 0).any():
            raise ArrayFileError("its tars do not follow each other")
        if count and (int(self._start.min()) < BLOCK or int(self._start.max()) > 1 << 60):
            raise ArrayFileError("positions that are in no tar")

    def __len__(self) -> int:
        return len(self._start)

    def contents(self) -> int:
        """CRC-32 of the images: names of the tars and offsets in them, but not their times."""
        crc = zlib.crc32("\n".join(self.tars).encode("utf-8", "surrogateescape"))
        for column in (self._first, self._start, self._size):
            crc = zlib.crc32(np.ascontiguousarray(column).view(np.uint8).data, crc)
        return crc

    def tar_number(self, index: int) -> int:
        """In which of `tars` an image lies."""
        return int(np.searchsorted(self._first, index, side="right")) - 1

    def images_of(self, number: int) -> range:
        """The images of a tar."""
        return range(int(self._first[number]), int(self._first[number + 1]))

    def name(self, index: int) -> str:
        """Member name of an image."""
        return self._names[index]

    def tar_path(self, number: int) -> str:
        """Path or URL of a tar."""
        return storage.join(self.location, self.tars[number])

    def read(self, index: int) -> bytes:
        """The encoded image.

        Raises:
          OSError: the tar cannot be read.
          DataError: what lies there is not the member that was indexed.
        """
        start, size = int(self._start[index]), int(self._size[index])
        path = self.tar_path(self.tar_number(index))
        data = read_member(path, start, size, int(self._header_crc[index]))
        if data is None:
            raise DataError(
                f"{path} changed since {self.path} was written: {self.name(index)!r} is not at byte {start} any more; "
                f"{_AGAIN}"
            )
        return data

    def check(self) -> None:
        """Compare the tars that are there with those that were indexed.

        Raises:
          DataError: some are missing or changed.
        """
        there = storage.list_files(self.location, ".tar")
        if there is None:
            raise DataError(
                f"tar index {self.path}: no folder {self.location}, where the tars are expected; if they moved, name "
                "the place in `location` of the set"
            )
        if not any(name in there for name in self.tars):
            raise DataError(
                f"tar index {self.path}: none of its tars ({some(self.tars)}) is in {self.location}, which holds "
                f"{some(list(there)) or 'no tars'}; `location` of the set is the folder of the tars themselves, often "
                "SET/webdataset"
            )
        # Of tars that were moved, each is looked into: at the same time, since an object store answers slowly.
        with ThreadPoolExecutor(_CHECKED_AT_A_TIME) as pool:
            found = pool.map(lambda number: self._problem(number, there), range(len(self.tars)))
            problems = [problem for problem in found if problem]
        if problems:
            shown = "".join(f"\n  {problem}" for problem in problems[:5])
            more = f"\n  and {len(problems) - 5} more" if len(problems) > 5 else ""
            raise DataError(f"tars changed since {self.path} was written:{shown}{more}\n{_AGAIN}")

    def _problem(self, number: int, there: dict[str, storage.FileInfo]) -> str | None:
        path, name = self.tar_path(number), self.tars[number]
        if name not in there:
            return f"{path} is missing"
        size, modified, crc = (int(column[number]) for column in self._fingerprints)
        change = Fingerprint(size, modified, crc).change(path, there[name])
        return None if change is None else f"{path} {change}"
