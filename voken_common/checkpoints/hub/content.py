"""The sha256 of a large file, computed once: later only its size and time of change are looked at."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from voken_common.atomic_write import replacing
from voken_common.checkpoints.downloads import default_cache


def content_hash(path: Path) -> str:
    """The sha256 of a file's content, in hexadecimal.

    It is remembered in the cache folder beside size, time of change and inode; a file that changes one of these is
    read again.

    Raises:
        OSError: it cannot be read.
    """
    path = path.resolve()
    stat = path.stat()
    mark = [str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino]
    record = default_cache() / "hashes" / f"{hashlib.sha256(os.fsencode(path)).hexdigest()}.json"
    if (known := _recorded(record, mark)) is not None:
        return known
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    after = path.stat()
    if [after.st_size, after.st_mtime_ns] == mark[1:3]:
        _remember(record, mark, found)
    return found


def _recorded(record: Path, mark: list[object]) -> str | None:
    try:
        values = json.loads(record.read_text())
        return str(values["sha256"]) if values["file"] == mark else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remember(record: Path, mark: list[object], found: str) -> None:
    try:
        with replacing(record) as file:
            file.write(json.dumps({"file": mark, "sha256": found}).encode())
    except OSError:
        # A cache that cannot be written only costs time.
        return
