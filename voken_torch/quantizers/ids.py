"""Ids as callers have them, of any integer type, in arrays, lists or tensors; arithmetic needs a type that is wide."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor


def widened(ids: Any, count: int, name: str = "ids", device: torch.device | None = None) -> Int64[Tensor, "..."]:
    """Ids as int64, in the shape that they have.

    While a program is traced or compiled values are not known, and only types are checked.

    Args:
        ids: integers of any type; nothing at all (an empty list) counts as integers.
        count: ids are in [0, count).
        name: what messages call them.
        device: where they are wanted; None: where they are, for lists and arrays the CPU.

    Raises:
        ValueError: other types, or ids that are out of range.
    """
    if not isinstance(ids, Tensor):
        array = np.asarray(ids)
        if array.size and array.dtype.kind not in "iu":
            raise ValueError(f"{name} are {array.dtype}, expected integers")
        _check(array, count, name)
        return torch.from_numpy(np.array(array, np.int64)).to(device)
    if ids.is_floating_point() or ids.is_complex() or ids.dtype is torch.bool:
        raise ValueError(f"{name} are {str(ids.dtype).removeprefix('torch.')}, expected integers")
    # Few operations know the unsigned types; numbers past int64 become negative ones, which are refused.
    wide = ids.to(torch.int64)
    if not (wide.is_meta or torch.compiler.is_compiling() or torch.jit._trace.is_tracing()):
        _check(wide, count, name)
    return wide.to(device)


def _check(ids: Any, count: int, name: str) -> None:
    size = ids.numel() if isinstance(ids, Tensor) else ids.size
    if size and not 0 <= int(ids.min()) <= int(ids.max()) < count:
        raise ValueError(f"{name} run from {int(ids.min())} to {int(ids.max())}, expected 0 to {count - 1}")
