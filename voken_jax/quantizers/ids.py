"""Ids as callers have them, of any integer type, in arrays, lists or tensors; arithmetic needs a type that is wide."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32


def widened(ids: Any, count: int, name: str = "ids") -> Int32[Array, "..."]:
    """Ids as int32, in the shape that they have.

    Inside a traced function values are not known, and only types are checked.

    Args:
      ids: integers of any type; nothing at all (an empty list) counts as integers.
      count: ids are in [0, count), at most 2^31.
      name: what messages call them.

    Raises:
      ValueError: other types, or ids that are out of range.
    """
    if isinstance(ids, jax.Array) and (isinstance(ids, jax.core.Tracer) or not ids.is_fully_addressable):
        if not jnp.issubdtype(ids.dtype, jnp.integer):
            raise ValueError(f"{name} are {ids.dtype}, expected integers")
        return ids.astype(jnp.int32)
    array = np.asarray(ids)
    if not array.size:
        return jnp.zeros(array.shape, jnp.int32)
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} are {array.dtype}, expected integers")
    if not 0 <= array.min() <= array.max() < count:
        raise ValueError(f"{name} run from {array.min()} to {array.max()}, expected 0 to {count - 1}")
    return jnp.asarray(array.astype(np.int32))
