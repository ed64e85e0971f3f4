"""One run per work directory: a lock that says who holds it and vanishes with its holder, however that ends."""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import logging
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from voken_common.atomic_write import open_own
from voken_common.errors import WorkdirError
from voken_common.processes import Processes
from voken_common.untrusted.json_text import loads

logger = logging.getLogger("voken")

FILE = "run.lock"
_LONGEST = 1 << 16
_HELD = (errno.EWOULDBLOCK, errno.EACCES)
_UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class RunLock:
    """Holds a work directory while the block runs; a context manager.

    The lock is the kernel's (`flock`), so it ends with the process that holds it, and a file left behind means
    nothing; its content only says who holds it. On a file system without locks two runs are not kept apart, which is
    said.

    Args:
        workdir: created if it is not there.

    Raises:
        WorkdirError: another run holds it, or nothing can be written there.
    """

    def __init__(self, workdir: str | Path):
        self._workdir = Path(workdir)
        self._file: IO[str] | None = None

    def __enter__(self) -> RunLock:
        path = self._workdir / FILE
        try:
            self._workdir.mkdir(parents=True, exist_ok=True)
            self._file = os.fdopen(open_own(path, os.O_RDWR | os.O_APPEND), "a+", encoding="utf-8")
        except OSError as error:
            raise WorkdirError(_unwritable(self._workdir, error)) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                logger.warning(
                    "%s has no file locks (%s): two runs in it are not noticed", self._workdir, error.strerror
                )
                return self
            holder = _holder(self._file)
            self._file.close()
            if error.errno not in _HELD:
                raise WorkdirError(_unwritable(self._workdir, error)) from error
            raise WorkdirError(
                f"{self._workdir} is in use by another run ({holder}); wait for it or stop it, or use another --workdir"
            ) from error
        try:
            self._describe()
        except OSError as error:
            self._file.close()
            raise WorkdirError(_unwritable(self._workdir, error)) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        # An empty file says that nobody holds it; a full disk must not hide the error that ends the run.
        with contextlib.suppress(OSError):
            self._file.truncate(0)
        self._file.close()

    def _describe(self) -> None:
        assert self._file is not None
        self._file.seek(0)
        self._file.truncate()
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "started": now, "command": " ".join(sys.argv)[:400]}
        self._file.write(json.dumps(holder) + "\n")
        self._file.flush()


@contextlib.contextmanager
def held(workdir: Path, processes: Processes) -> Iterator[None]:
    """A work directory held by the first of several processes; if it cannot be, all of them raise.

    Args:
        workdir: of the run.
        processes: those of the run, of which the first one holds it.

    Raises:
        WorkdirError: another run holds it, or nothing can be written there.
    """
    failure: WorkdirError | None = None
    with contextlib.ExitStack() as stack:
        if processes.first:
            try:
                stack.enter_context(RunLock(workdir))
            except WorkdirError as error:
                failure = error
        if processes.any(failure is not None):
            raise failure or WorkdirError(f"the first process cannot use {workdir}; its message says why")
        yield


def _holder(file: IO[str]) -> str:
    """Describe the holder of the lock."""
    try:
        file.seek(0)
        values: dict[str, Any] = loads(file.read(_LONGEST))
        text = f"process {values['pid']} on {values['host']}, started {values['started']}: {values['command']}"
        here = values["host"] == socket.gethostname()
        if here and not Path("/proc", str(values["pid"])).exists() and Path("/proc").is_dir():
            text += "; that process has ended, but one that it started still runs: end that one"
    except (OSError, ValueError, KeyError, TypeError):
        return "which has not said yet who it is"
    return text


def _unwritable(workdir: Path, error: OSError) -> str:
    return (
        f"{workdir} cannot be written to ({error.strerror}): a run keeps its checkpoints and logs there; use another "
        "--workdir, or make it writable"
    )
