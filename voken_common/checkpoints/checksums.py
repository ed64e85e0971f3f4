"""Checksums of a checkpoint's files and arrays: written with every step, verified before the step is used.

Storage returns wrong bytes without an error more often than one would like, and Orbax does not notice. A step that is a
folder carries `checksums.json`: size and CRC-32 of every file, and the CRC-32 of every array's stored bytes, by which a
damaged file is traced to the arrays in it. PyTorch files are zip archives, which carry a CRC-32 per tensor themselves.

CRC-32 finds accidents, not attacks; it costs a small part of reading the file.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import stat
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from tqdm import tqdm

from voken_common.atomic_write import replacing
from voken_common.untrusted.archives import open_zip
from voken_common.untrusted.files import open_descriptor, read_bytes
from voken_common.untrusted.json_text import loads
from voken_common.untrusted.text import shown

FILE = "checksums.json"
FORMAT = 1
_BLOCK = 1 << 20
_SHOWN_FROM = 2 << 30
"""Bytes from which on verification shows its progress."""
_THREADS = 4
_LOCAL_HEADER = 30


class Extent(NamedTuple):
    """Some bytes of an array: where they lie in which file (relative to the step), or the bytes themselves."""

    file: str = ""
    offset: int = 0
    length: int = 0
    inline: bytes = b""


Arrays = Mapping[str, Iterable[Extent]]
"""Name -> stored bytes of an array, in a fixed order."""


def crc32_of(path: Path, told: Callable[[int], object] = lambda _: None) -> int:
    """CRC-32 of a whole file; `told` is called with the size of every block read."""
    with os.fdopen(open_descriptor(path), "rb", buffering=0) as file:
        return _crc32(file, None, 0, told)


def forget_cached(place: Path) -> None:
    """Have the system read a file, or those of a folder, from the disk next time, as far as it lets us.

    What was just written is still in memory, and the disk may hold something else. Where a system cannot do so (it has
    no such call, or the files are on another machine), the next read may still be from memory.

    Raises:
        OSError: a file cannot be opened, or its bytes cannot be brought to the disk: what is read of it next may be the
            good copy in memory of what the disk has damaged or lost.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    for path in [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]:
        with path.open("rb") as file:
            # Pages that are not on the disk yet cannot be given up.
            os.fsync(file.fileno())
            with contextlib.suppress(OSError):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def crc32_of_extents(folder: Path, extents: Iterable[Extent]) -> int:
    """CRC-32 over the bytes of an array, in order.

    Raises:
        OSError: a file is missing.
        ValueError: a file ends too early.
    """
    value = 0
    for extent in extents:
        value = zlib.crc32(extent.inline, value)
        if extent.file:
            with os.fdopen(open_descriptor(folder / extent.file), "rb", buffering=0) as file:
                file.seek(extent.offset)
                value = _crc32(file, extent.length, value)
    return value


def _crc32(file: IO[bytes], length: int | None, value: int, told: Callable[[int], object] = lambda _: None) -> int:
    """CRC-32 of the next `length` bytes (None: all), through a buffer that stays in the processor's cache."""
    left = sys.maxsize if length is None else length
    buffer = memoryview(bytearray(min(_BLOCK, left)))
    while left:
        # Every binary file has it; typing.IO does not say so.
        count = file.readinto(buffer[: min(left, _BLOCK)])  # type: ignore[attr-defined]
        if not count:
            if length is None:
                break
            raise ValueError(f"{file.name} ends {left} bytes too early")
        value, left = zlib.crc32(buffer[:count], value), left - count
        told(count)
    return value


def write_checksums(folder: Path, arrays: Arrays, without: Iterable[str] = ()) -> None:
    """Write `checksums.json` of all files now in a folder; it is on the disk when this returns.

    Args:
        folder: a step that is complete and not yet in use.
        arrays: the stored bytes of its arrays.
        without: names of files in the folder itself that may still change.
    """
    left_out = {folder / name for name in (FILE, *without)}
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path not in left_out)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        sums = list(pool.map(crc32_of, paths))
        array_sums = list(pool.map(lambda extents: crc32_of_extents(folder, extents), arrays.values()))
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "crc32": value}
        for path, value in zip(paths, sums, strict=True)
    }
    content = {"format": FORMAT, "files": files, "arrays": dict(zip(arrays, array_sums, strict=True))}
    with replacing(folder / FILE) as file:
        file.write(json.dumps({**content, "crc32": _own_sum(content)}, indent=1).encode())


def has_checksums(folder: Path) -> bool:
    """True if a folder carries checksums."""
    return (folder / FILE).exists()


def quick_problems(folder: Path, items: Iterable[str] | None = None) -> list[str]:
    """List the faults that show without reading the data: files that are missing or of another size.

    Args:
        folder: a step with checksums.
        items: look at these parts of the step (folders in it) only; None: at all.
    """
    try:
        content = _read(folder)
    except ValueError as error:
        return [str(error)]
    return [text for text in (_size_problem(folder, content, name) for name in _chosen(content, items)) if text]


def problems(
    folder: Path,
    items: Iterable[str] | None = None,
    arrays: Callable[[], Arrays] | None = None,
) -> list[str]:
    """Everything that is wrong with a step, one line each; empty for a good one.

    Args:
        folder: a step with checksums.
        items: look at these parts of the step (folders in it) only; None: at all.
        arrays: finds the stored bytes of its arrays, to name those in a damaged file; called only then.
    """
    visible = quick_problems(folder, items)
    if visible:
        return visible
    content = _read(folder)
    names = _chosen(content, items)
    total = sum(content["files"][name]["size"] for name in names)
    with (
        _progress(folder.name, total) as bar,
        concurrent.futures.ThreadPoolExecutor(_THREADS) as pool,
    ):
        found = pool.map(lambda name: _content_problem(folder, content, name, bar.update), names)
        texts = [text for text in found if text]
    return texts + (_damaged_arrays(folder, content, items, arrays) if texts and arrays else [])


def _progress(name: str, size: int) -> tqdm:
    """A bar over the bytes of what is verified, where it takes long enough to be looked at."""
    hidden = size < _SHOWN_FROM
    return tqdm(total=size, desc=f"verifying {name}", unit="B", unit_scale=True, disable=hidden, leave=False)


def zip_problems(path: Path, contents: Callable[[], Mapping[str, str]] | None = None) -> list[str]:
    """Everything that is wrong with a zip archive, such as `torch.save` writes; empty for a good one.

    Args:
        path: the file.
        contents: entry -> name of the tensor in it, called only to describe a damaged one.
    """
    try:
        size = path.stat().st_size
        with (
            path.open("rb") as file,
            open_zip(file) as archive,
            _progress(path.name, size) as bar,
        ):
            bad = [info.filename for info in archive.infolist() if not _reads(archive, info, bar.update)]
    except (OSError, EOFError, RuntimeError, NotImplementedError, ValueError, zipfile.BadZipFile) as error:
        return [f"{path.name} is no complete archive ({error})"]
    named: Mapping[str, str] = {}
    if bad and contents is not None:
        try:
            named = contents()
        except (OSError, ValueError):
            named = {}
    return [f"{named.get(entry, entry)} has another checksum than when it was written" for entry in bad]


def _reads(archive: zipfile.ZipFile, info: zipfile.ZipInfo, told: Callable[[int], object]) -> bool:
    """True if an entry has the checksum it was written with."""
    try:
        with archive.open(info) as entry:
            while block := entry.read(_BLOCK):
                told(len(block))
    except (zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError, RuntimeError, OSError, ValueError):
        return False
    return True


def _read(folder: Path) -> dict[str, Any]:
    """The content of a folder's `checksums.json`.

    Raises:
        ValueError: it is missing, damaged, or of another format.
    """
    try:
        content = loads(read_bytes(folder / FILE))
        own = content.pop("crc32")
        if own != _own_sum(content):
            raise ValueError("it does not have its own checksum")
        if content["format"] != FORMAT:
            raise ValueError(f"it has format {content['format']}, this version reads {FORMAT}")
        for name, entry in content["files"].items():
            _require_inside(folder, name)
            if not all(type(entry[key]) is int and entry[key] >= 0 for key in ("size", "crc32")):
                raise ValueError(f"it says {shown(entry)} of {shown(name)}")
        if not isinstance(content["arrays"], dict):
            raise ValueError("it lists no arrays")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{FILE} cannot be used ({type(error).__name__}: {error})") from error
    return dict(content)


def _require_inside(folder: Path, name: str) -> None:
    """Raise ValueError at a name that is none of a file in a step: whose checksums are read may be a stranger's."""
    parts = name.split("/")
    if "" in parts or ".." in parts or "." in parts or "\0" in name or "\\" in name:
        raise ValueError(f"it names {shown(name)}, which is not in the step")
    for depth in range(1, len(parts) + 1):
        if folder.joinpath(*parts[:depth]).is_symlink():
            raise ValueError(f"{shown(name)} is, or lies behind, a link")


def _own_sum(content: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _chosen(content: Mapping[str, Any], items: Iterable[str] | None) -> list[str]:
    """Names of the files of some items, the largest first."""
    kept = None if items is None else set(items)
    names = [name for name in content["files"] if kept is None or name.partition("/")[0] in kept]
    return sorted(names, key=lambda name: -content["files"][name]["size"])


def _size_problem(folder: Path, content: Mapping[str, Any], name: str) -> str:
    expected = content["files"][name]["size"]
    try:
        status = os.lstat(folder / name)
    except OSError as error:
        return f"{name} is not there ({error.strerror})"
    if not stat.S_ISREG(status.st_mode):
        return f"{name} is no regular file"
    found = status.st_size
    return "" if found == expected else f"{name} has {found} bytes, {expected} were written"


def _content_problem(folder: Path, content: Mapping[str, Any], name: str, told: Callable[[int], object]) -> str:
    try:
        found = crc32_of(folder / name, told)
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    return "" if found == content["files"][name]["crc32"] else f"{name} has another checksum than when it was written"


def _damaged_arrays(
    folder: Path, content: Mapping[str, Any], items: Iterable[str] | None, arrays: Callable[[], Arrays]
) -> list[str]:
    """Names of the arrays whose stored bytes changed; nothing where they cannot even be found."""
    kept = None if items is None else set(items)
    try:
        there = arrays()
    # What a damaged index makes its reader raise is as varied as the damage.
    except Exception as error:
        return [f"the arrays in it cannot be listed ({type(error).__name__})"]
    bad = []
    for name, expected in content["arrays"].items():
        if kept is not None and name.partition("/")[0] not in kept:
            continue
        try:
            good = name in there and crc32_of_extents(folder, there[name]) == expected
        except (OSError, ValueError):
            good = False
        if not good:
            bad.append(name)
    return [f"damaged array(s): {', '.join(bad[:6])}" + (f" and {len(bad) - 6} more" if len(bad) > 6 else "")] * bool(
        bad
    )
