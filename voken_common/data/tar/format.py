"""Find the members of a tar, so that each can be read by itself, and the offset at which a damaged tar breaks off.

The standard library's reader stops silently at a damaged header, as if the archive ended there: a set would lose
samples without a word. This walk tells an end from damage.
"""

from __future__ import annotations

import dataclasses
import tarfile
import zlib
from collections.abc import Iterator
from typing import IO

from voken_common.errors import EscapedError

BLOCK = 512
_LONGEST_EXTENSION = 1 << 20
_LONGEST_PADDING = 1 << 16
"""Archives are padded with zeros to a multiple of 10 KiB, or of whatever the writer's record is."""
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}


@dataclasses.dataclass(frozen=True, slots=True)
class TarMember:
    """A regular file in a tar: its bytes are at `start`, its header in the 512 bytes before."""

    name: str
    start: int
    size: int
    header_crc: int
    """CRC-32 of those 512 bytes, by which a reader knows that it is still the same member."""


class TarDamageError(EscapedError):
    """The walk cannot go on; members found before are good."""


def walk_tar(file: IO[bytes], length: int) -> Iterator[TarMember]:
    """The regular files of a tar in their order; reads headers only and leaves `file` anywhere.

    Args:
      file: seekable, with the tar from its current position on.
      length: bytes of the tar.

    Raises:
      TarDamageError: when everything before the damage has been given: a cut or empty file, a header that is none,
        an end without its marker, more data after the marker.
    """
    base = file.tell()
    position = 0
    extended: dict[str, str] = {}
    while True:
        file.seek(base + position)
        block = file.read(min(BLOCK, max(length - position, 0)))
        if len(block) < BLOCK:
            raise TarDamageError(_cut(position, len(block), length))
        if not any(block):
            if length - position > _LONGEST_PADDING:
                raise TarDamageError(
                    f"the end of the archive is marked at byte {position}, but the file has {length} bytes"
                )
            # A header that was overwritten with zeros looks like the end, until something follows.
            if any(file.read(max(length - position - BLOCK, 0))):
                raise TarDamageError(f"zeros at byte {position} as at the end of the archive, but more data after them")
            return
        info = _header(block, position)
        start = position + BLOCK
        size = int(extended.get("size", info.size)) if info.isreg() else info.size
        stored = size if info.isreg() or info.type not in tarfile.SUPPORTED_TYPES or _is_extension(info) else 0
        name = extended.get("path", info.name)
        if size < 0 or start + stored > length:
            raise TarDamageError(f"member {name!r} at byte {position} needs {size} bytes, the file has {length}")
        position = start + -(-stored // BLOCK) * BLOCK
        if _is_extension(info):
            if size > _LONGEST_EXTENSION:
                raise TarDamageError(f"the extended header at byte {start - BLOCK} claims {size} bytes")
            extended |= _extension(info, file.read(size), start)
            continue
        if info.type == tarfile.GNUTYPE_SPARSE:
            raise TarDamageError(f"member {name!r} at byte {start - BLOCK} is sparse and not stored as it is")
        if info.isreg():
            yield TarMember(name, start, size, zlib.crc32(block))
        extended = {}


def _header(block: bytes, position: int) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError) as error:
        packed = next((name for magic, name in _COMPRESSED.items() if block.startswith(magic)), None)
        if position == 0 and packed:
            raise TarDamageError(f"is compressed with {packed}; random access needs plain tars: unpack it") from error
        what = "it is not a tar" if position == 0 else "the rest of the file is lost"
        raise TarDamageError(f"no tar header at byte {position}; {what}") from error


def _is_extension(info: tarfile.TarInfo) -> bool:
    return info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE)


def _extension(info: tarfile.TarInfo, data: bytes, start: int) -> dict[str, str]:
    """Return the `path` and `size` that an extended header gives for the next member."""
    if info.type == tarfile.GNUTYPE_LONGNAME:
        return {"path": data.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    if info.type != tarfile.XHDTYPE:
        return {}
    found = {}
    while data.strip(b"\0"):
        digits, space, _ = data.partition(b" ")
        if not space or not _is_number(digits) or not len(digits) + 1 < int(digits) <= len(data):
            raise TarDamageError(f"the extended header at byte {start - BLOCK} is damaged")
        record, data = data[len(digits) + 1 : int(digits)], data[int(digits) :]
        key, _, value = record.rstrip(b"\n").partition(b"=")
        if key == b"path":
            found["path"] = value.decode("utf-8", "surrogateescape")
        elif key == b"size":
            if not _is_number(value):
                raise TarDamageError(f"the extended header at byte {start - BLOCK} is damaged")
            found["size"] = value.decode()
    return found


def _is_number(digits: bytes) -> bool:
    return digits.isdigit() and len(digits) < 20


def _cut(position: int, found: int, length: int) -> str:
    if length == 0:
        return "the file is empty"
    if found == 0:
        return f"the file ends at byte {length} without the end of the archive"
    return f"the file ends at byte {length}, within a header"
