"""What can go wrong with data, as errors whose message is meant for the user.

All of them take one message, so that they survive the trip out of a worker process.
"""

from voken_common.errors import UserError


class DataError(UserError):
    """A source that cannot be opened, or that is not what the configuration says."""


class ImageDecodeError(DataError):
    """One image that cannot be read or decoded; the message starts with its path."""


class ReadError(DataError):
    """A store, file system or disk that did not answer for too long; the message starts with what was to be read."""


class TooManyBadImagesError(DataError):
    """More undecodable images than `max_bad_fraction` allows."""
