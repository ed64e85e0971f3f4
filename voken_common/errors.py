"""Errors that several modules raise and users may want to catch."""


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, refused, or not what the caller needs; the message says which and why."""
