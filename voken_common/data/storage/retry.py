"""Read with retries while an object store, a network file system or a disk does not answer.

A file that is gone is a bad image, and training takes the next one in its place. A store that does not answer is
something else: were its images replaced, what is trained on would depend on the network. Such a read is tried again,
and where that does not help for long enough, it stops the run.
"""

from __future__ import annotations

import errno
import logging
import math
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from voken_common.data.errors import ReadError

logger = logging.getLogger("voken.data")

T = TypeVar("T")

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
_QUIET = 3.0
"""Seconds that reading may fail before it is told: stores refuse single requests all the time."""
_REMEMBERED = 10.0
"""Seconds after a read was given up in which others begin in vain: those that a pool of threads had waiting."""
_GONE = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
_GONE_NUMBERS = frozenset({errno.ELOOP, errno.ENAMETOOLONG})


def is_gone(error: OSError) -> bool:
    """True if the error means that a file is missing or not a file; any other error may pass."""
    return isinstance(error, _GONE) or error.errno in _GONE_NUMBERS


class Patience:
    """Time limit for the retries of one process; shared by its threads.

    Args:
        seconds: for each read from its first failure on, and at least once; 0: never again.
        setting: where the user sets them, for messages.
    """

    def __init__(self, seconds: float, setting: str = "data.retry_seconds"):
        self._seconds, self._setting = seconds, setting
        self._changed = threading.Condition()
        self._waiting = 0
        self._told = False
        # Reads that began before this time end with the one that was given up: the run is about to end, and threads
        # that still wait would hold it up.
        self._vain_before = -math.inf

    def __reduce__(self) -> tuple[object, ...]:
        # Travels to worker processes, and locks do not.
        return Patience, (self._seconds, self._setting)

    def read(self, attempt: Callable[[], T], name: Callable[[], str]) -> T:
        """Return the result of `attempt`, the first time it succeeds.

        Args:
            attempt: reads; raises OSError where it cannot. It is tried at least twice, however long it takes, unless
                the seconds are 0.
            name: what messages call that which is read.

        Raises:
            OSError: the file is gone (`is_gone`).
            ReadError: it could not be read for longer than allowed, or another read of this process could not.
        """
        began = time.monotonic()
        try:
            result = attempt()
        except OSError as error:
            if is_gone(error):
                raise
            return self._again(attempt, name(), began, error)
        self._vain_before = -math.inf
        return result

    def _again(self, attempt: Callable[[], T], name: str, began: float, error: OSError) -> T:
        failed, pause, tries = time.monotonic(), _FIRST_PAUSE, 1
        with self._changed:
            self._waiting += 1
        try:
            while self._seconds and ((left := failed + self._seconds - time.monotonic()) > 0 or tries == 1):
                # Not all at the same moment: the many processes of a run would keep a weak store down.
                if self._is_vain(began, min(left, pause * random.uniform(0.5, 1.0))):
                    raise ReadError(self._failure(name, tries, failed, error, "another read was given up")) from error
                self._tell(name, time.monotonic() - failed, error)
                pause, tries = min(2 * pause, _LONGEST_PAUSE), tries + 1
                try:
                    return attempt()
                except OSError as latest:
                    if is_gone(latest):
                        raise
                    error = latest
            raise ReadError(self._given_up(name, tries, failed, error)) from error
        finally:
            self._leave(began, time.monotonic() - failed)

    def _is_vain(self, began: float, seconds: float) -> bool:
        """True if a read has to end because another one was given up, now or in the next seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: began < self._vain_before, seconds)

    def _given_up(self, name: str, tries: int, failed: float, error: OSError) -> str:
        """Let the others end, too; what to say."""
        message = self._failure(name, tries, failed, error)
        with self._changed:
            first = self._vain_before < time.monotonic()
            self._vain_before = time.monotonic() + _REMEMBERED
            self._changed.notify_all()
        if first:
            # Told here, as the error takes its time to the user: other worker processes are waited for.
            logger.error("%s", message)
        return message

    def _tell(self, name: str, waited: float, error: OSError) -> None:
        """One warning for all threads, while it lasts."""
        with self._changed:
            if self._told or waited < _QUIET:
                return
            self._told = True
        logger.warning(
            "%s: cannot be read for %.0f s: %s; trying again for up to %g s (%s)",
            name,
            waited,
            reason(error),
            self._seconds,
            self._setting,
        )

    def _leave(self, began: float, waited: float) -> None:
        with self._changed:
            self._waiting -= 1
            over = self._told and not self._waiting and began >= self._vain_before
            if not self._waiting:
                self._told = False
        if over:
            logger.warning("reading goes on after %.0f s", waited)

    def _failure(self, name: str, tries: int, failed: float, error: OSError, why: str = "") -> str:
        waited = time.monotonic() - failed
        limit = f"{why}; " if why else ""
        return (
            f"{name}: cannot be read: {reason(error)}. Tried {tries} time{'' if tries == 1 else 's'} in {waited:.0f} s "
            f"({limit}{self._setting} {self._seconds:g}). This says nothing against the file, so nothing takes its "
            "place: see to the storage, then run the same command again; it continues from what it has saved last"
        )


def reason(error: OSError) -> str:
    """Return the text of an error without its number and path."""
    return error.strerror or str(error) or type(error).__name__
