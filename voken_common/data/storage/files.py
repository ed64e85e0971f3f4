"""Files in local folders and in object stores: listing, sizes, reading a range.

A location is a local path or, with `://` in it, a URL for fsspec (`s3://bucket/folder`), which is imported when first
needed. Credentials and endpoints come from fsspec's own configuration, never from here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import functools
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from voken_common.data.errors import DataError
from voken_common.untrusted.files import not_regular, open_descriptor, open_regular
from voken_common.untrusted.text import shown

PROTOCOLS = frozenset("abfs abfss adl az cos file gcs gs hdfs http https memory obs oss s3 s3a tos webhdfs".split())
"""Stores that URLs may name. No others: some of fsspec's file systems render templates, start programs, or wrap a
further URL, which a name out of a file must not choose."""
_OPEN_FILES = 128
_TIME_KEYS = ("mtime", "LastModified", "last_modified", "updated", "created")


@dataclasses.dataclass(frozen=True)
class FileInfo:
    """Bytes of a file, and when it changed in nanoseconds since 1970; 0 where the store does not say."""

    size: int
    modified: int


def is_url(location: str) -> bool:
    """True if fsspec has to open it.

    Raises:
      DataError: a URL of a kind that voken does not open.
    """
    if "://" not in location:
        return False
    protocol, _, rest = location.partition("://")
    if protocol.lower() not in PROTOCOLS or "::" in location or "://" in rest:
        raise DataError(
            f"{shown(location)} is not opened: expected one URL that begins with {', '.join(sorted(PROTOCOLS))} and "
            "holds no `::`. Chains and file systems made of references run or reach what their text says"
        )
    return True


def join(folder: str, name: str) -> str:
    """Location of a file in a folder."""
    return f"{folder.rstrip('/')}/{name}" if is_url(folder) else os.path.join(folder, name)


def normalized(location: str) -> str:
    """A local path absolute and without `~`, a URL without its last slash."""
    return location.rstrip("/") if is_url(location) else str(Path(location).expanduser().absolute())


def list_files(folder: str, suffix: str) -> dict[str, FileInfo] | None:
    """The files directly in a folder whose names end like this, sorted by name; None: there is no such folder.

    Raises:
      DataError: the store cannot be opened or refuses.
    """
    if is_url(folder):
        return _list_remote(folder, suffix)
    if not os.path.isdir(folder):
        return None
    with os.scandir(folder) as entries:
        found = {e.name: e.stat() for e in entries if e.name.endswith(suffix) and e.is_file() and e.name[0] != "."}
    return {name: FileInfo(found[name].st_size, found[name].st_mtime_ns) for name in sorted(found)}


def file_info(path: str) -> FileInfo:
    """Size and time of one file.

    Raises:
      OSError: it is not there.
    """
    if is_url(path):
        with _store_errors(path):
            system, inner = _file_system(path)
            return _info(system.info(inner))
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise not_regular(path)
    return FileInfo(found.st_size, found.st_mtime_ns)


def read_range(path: str, start: int, size: int) -> bytes:
    """`size` bytes from `start` on, fewer where the file ends before; safe in threads.

    Raises:
      OSError: it cannot be read.
    """
    if is_url(path):
        with _store_errors(path):
            system, inner = _file_system(path)
            return cast(bytes, system.cat_file(inner, start=start, end=start + size))
    if start < 0 or size < 0:
        raise OSError(errno.EINVAL, f"{size} bytes at {start} cannot be", path)
    handle = _handles.get(path)
    size = min(size, max(os.fstat(handle.descriptor).st_size - start, 0))
    try:
        data = os.pread(handle.descriptor, size, start)
        while len(data) < size and (more := os.pread(handle.descriptor, size - len(data), start + len(data))):
            data += more
    except OSError:
        # A network file system that comes back knows the old handle no more.
        _handles.drop(path)
        raise
    return data


def open_reading(path: str) -> IO[bytes]:
    """A seekable file for reading from front to back; its `read` takes a size.

    Raises:
      OSError: it is not there; its `read` raises no other, either.
    """
    if is_url(path):
        with _store_errors(path):
            system, inner = _file_system(path)
            return cast(IO[bytes], _StoreFile(path, system.open(inner, "rb")))
    return open_regular(path)


@contextlib.contextmanager
def folder_expected(folder: str | None) -> Iterator[None]:
    """Tell a missing file from a missing folder: a folder that is gone, or empty like an unmounted one, may come back.

    Args:
      folder: a local one; None: nothing is expected.

    Raises:
      OSError: what was raised within, but in place of FileNotFoundError ENODEV where the folder is gone, and ESTALE
        where it came back since, with the file in it.
    """
    try:
        yield
    except FileNotFoundError as error:
        if folder is None:
            raise
        if _holds_files(folder):
            if error.filename is None or not os.path.exists(error.filename):
                raise
            raise OSError(errno.ESTALE, "it was not there, and is again", error.filename) from error
        raise OSError(errno.ENODEV, f"the folder {folder} is not there any more, or empty") from error


def _holds_files(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(True for _ in entries)
    except (FileNotFoundError, NotADirectoryError):
        return False


@contextlib.contextmanager
def _store_errors(url: str) -> Iterator[None]:
    """Turn a store's error into an OSError: some stores raise the errors of the library below them.

    That a file is not there stays what it is. That one may not be read does not: in a store it means credentials, which
    expire for all files at once.
    """
    try:
        yield
    except (DataError, FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise
    except Exception as error:
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}", url) from error


class _StoreFile:
    """An opened file of a store, as far as tars need one."""

    def __init__(self, url: str, file: Any):
        self._url, self._file = url, file

    def __enter__(self) -> _StoreFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def tell(self) -> int:
        return cast(int, self._file.tell())

    def seek(self, position: int) -> int:
        return cast(int, self._file.seek(position))

    def read(self, size: int) -> bytes:
        with _store_errors(self._url):
            return cast(bytes, self._file.read(size))


def _list_remote(folder: str, suffix: str) -> dict[str, FileInfo] | None:
    system, inner = _file_system(folder)
    try:
        entries = system.ls(inner, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:
        raise DataError(f"cannot list {folder}: {error}") from error
    named = {os.path.basename(entry["name"]): entry for entry in entries if entry["type"] == "file"}
    return {name: _info(named[name]) for name in sorted(named) if name.endswith(suffix) and name[0] != "."}


def _info(entry: dict[str, Any]) -> FileInfo:
    time = next((entry[key] for key in _TIME_KEYS if key in entry), 0)
    if isinstance(time, datetime.datetime):
        time = time.timestamp()
    return FileInfo(int(entry["size"]), int(time * 1e9) if isinstance(time, int | float) else 0)


@functools.lru_cache(maxsize=256)
def _store(root: str) -> Any:
    try:
        import fsspec
    except ImportError as error:
        raise DataError(f"reading {root} needs fsspec, which is not installed: pip install 'voken[data]'") from error
    try:
        return fsspec.core.url_to_fs(root)[0]
    except (ImportError, ValueError) as error:
        raise DataError(f"fsspec cannot open {root}: {error}") from error


def _file_system(url: str) -> tuple[Any, str]:
    """The file system of a URL and the path in it."""
    protocol, _, rest = url.partition("://")
    system = _store(f"{protocol}://{rest.split('/')[0]}")
    return system, system._strip_protocol(url)


class _Handle:
    """An open file, closed when the last thread that reads from it lets go."""

    def __init__(self, path: str):
        self.descriptor = open_descriptor(path)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class _Handles:
    """The files read last, kept open: opening costs a round trip on a network file system."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, _Handle] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, path: str) -> _Handle:
        with self._lock:
            handle = self._open.pop(path, None)
        if handle is None:
            handle = _Handle(path)
        with self._lock:
            self._open[path] = handle
            while len(self._open) > _OPEN_FILES:
                self._open.popitem(last=False)
        return handle

    def drop(self, path: str) -> None:
        """Open it anew the next time."""
        with self._lock:
            self._open.pop(path, None)


_handles = _Handles()
