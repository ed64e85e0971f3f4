"""NumPy scalars in a pickle, as Lightning's files have them among their metadata, without calling NumPy's own names."""

from __future__ import annotations

from typing import Any

import numpy as np

from voken_common.errors import CheckpointError

_KINDS = "biuf"
_REST_OF_STATE = (None, None, None, -1, -1)


class NumberType:
    """Stand-in for `numpy.dtype` in a pickle: a type of numbers, whose byte order the pickle sets afterwards."""

    __slots__ = ("dtype",)

    def __init__(self, code: str, align: Any = False, copy: Any = False) -> None:
        try:
            self.dtype = np.dtype(code if isinstance(code, str) and len(code) <= 4 else "O")
        except TypeError as error:
            raise CheckpointError(f"names the NumPy type {code!r:.40}; expected one of numbers") from error
        if self.dtype.kind not in _KINDS:
            raise CheckpointError(f"names the NumPy type {code!r:.40}; expected one of numbers")

    def __setstate__(self, state: Any) -> None:
        """Take the byte order; a structure or metadata is refused."""
        if not isinstance(state, tuple) or len(state) < 7 or tuple(state[2:7]) != _REST_OF_STATE:
            raise CheckpointError("describes a NumPy type that is not one of numbers. Do not trust this file")
        if state[1] not in ("<", ">", "|", "="):
            raise CheckpointError(f"gives a NumPy type the byte order {state[1]!r:.10}: damaged")
        self.dtype = self.dtype.newbyteorder(state[1])


def scalar(kind: Any, data: Any = b"") -> bool | int | float:
    """`numpy.core.multiarray.scalar`: the number, as plain Python."""
    if not isinstance(kind, NumberType) or not isinstance(data, bytes) or len(data) != kind.dtype.itemsize:
        raise CheckpointError("holds a NumPy scalar that is no number: damaged")
    value: bool | int | float = np.frombuffer(data, kind.dtype)[0].item()
    return value


def encoded(text: Any, encoding: Any = "latin1") -> bytes:
    """`_codecs.encode` as old pickle protocols write bytes: text of characters below 256."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise CheckpointError("encodes something other than bytes; expected data only. Do not trust this file")
    return text.encode("latin1")


CONSTRUCTORS: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): NumberType,
    ("numpy.core.multiarray", "scalar"): scalar,
    ("numpy._core.multiarray", "scalar"): scalar,
    ("_codecs", "encode"): encoded,
}
