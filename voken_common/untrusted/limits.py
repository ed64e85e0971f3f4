"""The error for what is larger or deeper than its reader takes."""


class LimitError(ValueError):
    """A file that could exhaust its reader: damaged, or made to do so."""
