"""Errors of data, with messages meant for the user.

All of them take one message, so that they survive the trip out of a worker process.
"""

from __future__ import annotations

from collections.abc import Sequence

from voken_common.errors import UserError

_SHOWN = 5


class DataError(UserError):
    """A source that cannot be opened, or that is not what the configuration says."""


class ImageDecodeError(DataError):
    """One image that cannot be read or decoded; the message starts with its path."""


class ReadError(DataError):
    """A store, file system or disk that did not answer for too long; the message starts with what was to be read."""


class TooManyBadImagesError(DataError):
    """More undecodable images than `max_bad_fraction` allows."""


def some(names: Sequence[str]) -> str:
    """The first few, and how many more."""
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown
