"""Writing files so that a reader, or a run that was killed, never meets half of one, and no link leads elsewhere."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_PARTIAL = re.compile(r".+\.[0-9a-f]{32}\.part")


@contextlib.contextmanager
def replacing(path: str | Path, *, below: str | Path | None = None) -> Iterator[IO[bytes]]:
    """A file to write that becomes `path` when the block ends without an error, and vanishes otherwise.

    It lies beside `path`, whose folders are created, so that the rename is atomic. The bytes reach the disk first. A
    link at `path` is replaced, and what it points to stays; the permissions of a regular file are kept.

    Args:
        path: of the file.
        below: a folder of the user. None of the folders between it and `path` may be a link.

    Raises:
        OSError: it cannot be written; or a folder on the way is a link (ELOOP).
    """
    path = Path(path)
    if below is not None:
        require_no_links(Path(below), path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        with partial.open("xb") as file:
            with contextlib.suppress(FileNotFoundError):
                before = os.lstat(path)
                if stat.S_ISREG(before.st_mode):
                    os.fchmod(file.fileno(), stat.S_IMODE(before.st_mode) & 0o777)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def is_partial(name: str) -> bool:
    """True if a file name is one that `replacing` gives while it writes."""
    return _PARTIAL.fullmatch(name) is not None


def require_no_links(root: Path, folder: Path) -> None:
    """Raise OSError if a folder between a root, which may be one, and `folder`, that one included, is a link."""
    place = folder
    while place != root and root in place.parents:
        if place.is_symlink():
            raise OSError(errno.ELOOP, "is a link, which is not followed: remove it", str(place))
        place = place.parent


def open_own(path: str | Path, flags: int) -> int:
    """Open a regular file of a work directory, created if it is not there; a link is not followed.

    Args:
        path: of the file.
        flags: of `os.open`, such as `os.O_RDWR | os.O_APPEND`.

    Returns:
        a descriptor.

    Raises:
        OSError: it cannot be opened, is a link (ELOOP), or no regular file (EINVAL).
    """
    flags |= os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "is a link, which is not followed: remove it", str(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is no regular file", str(path))
    return descriptor
