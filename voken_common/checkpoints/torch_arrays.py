"""Tensors of a torch file as arrays, and the containers around them: bounded in depth, number and bytes."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import numpy as np

from voken_common.checkpoints.torch_globals import DTypeRef, StorageRef, TensorRef
from voken_common.errors import CheckpointError

Storages = dict[str, np.ndarray]
DEEPEST = 100
"""Containers within each other, in what a checkpoint holds beside tensors."""
MOST_OBJECTS = 4_000_000
"""Objects in all containers; those of a container that others share count in each."""
GROWTH, ALLOWANCE = 8, 64 << 20
"""All tensors together, shared ones counted each time, have at most this many times the file's bytes, and these."""


class Contents:
    """Replaces tensor references by arrays; dicts and lists are changed in place.

    Args:
        storages: the bytes of the file by key.
        largest: bytes that all tensors may have together.
    """

    def __init__(self, storages: Storages, largest: int):
        self._storages, self._left, self._largest = storages, largest, largest
        self._made: dict[int, tuple[Any, Any, int]] = {}
        """id -> the object, which stays alive so that no other has its id, what became of it, and its objects."""
        self._open: set[int] = set()

    def materialise(self, value: Any) -> Any:
        """Convert a value.

        Raises:
            CheckpointError: a tensor that cannot be, tensors of more bytes than the file can account for, or
                containers that are too deep, too many, or hold themselves.
        """
        return self._visit(value, 0)[0]

    def _visit(self, value: Any, depth: int) -> tuple[Any, int]:
        """(what it becomes, the objects in it)."""
        if isinstance(value, TensorRef):
            self._left -= math.prod(value.shape) * value.dtype.itemsize
            if self._left < 0:
                raise CheckpointError(
                    f"its tensors have more than {self._largest} bytes, far more than the file: they repeat what is "
                    "stored. It is damaged or was made to do harm"
                )
            return _tensor(value, self._storages), 1
        if isinstance(value, StorageRef):
            return _storage(value, self._storages), 1
        if isinstance(value, DTypeRef):
            return value.dtype, 1
        if not isinstance(value, tuple | dict | list):
            return value, 1
        if id(value) in self._open:
            raise CheckpointError("a container holds itself; expected the plain content of a checkpoint")
        if depth >= DEEPEST:
            raise CheckpointError(f"containers are nested more than {DEEPEST} deep; expected those of a checkpoint")
        if id(value) not in self._made:
            self._open.add(id(value))
            self._made[id(value)] = (value, *self._container(value, depth))
            self._open.remove(id(value))
        return self._made[id(value)][1:]

    def _container(self, value: tuple[Any, ...] | dict[Any, Any] | list[Any], depth: int) -> tuple[Any, int]:
        objects = 1
        if isinstance(value, OrderedDict):
            vars(value).clear()  # torch's _metadata; attributes from a file could also hide methods
        items: list[Any] = []
        for key in value if isinstance(value, dict) else range(len(value)):
            made, count = self._visit(value[key], depth + 1)
            objects += count
            if objects > MOST_OBJECTS:
                raise CheckpointError(f"containers hold more than {MOST_OBJECTS} objects, shared ones each time")
            if isinstance(value, tuple):
                items.append(made)
            else:
                value[key] = made
        return (tuple(items) if isinstance(value, tuple) else value), objects


def _storage(ref: StorageRef, storages: Storages) -> np.ndarray:
    """The elements of a storage, 1-D."""
    if ref.key not in storages:
        raise CheckpointError(f"storage {ref.key!r} is missing from the file: it is damaged")
    begin, size = ref.begin * ref.dtype.itemsize, ref.count * ref.dtype.itemsize
    # The bytes may lie unaligned in the old layout; only then is a copy made.
    return np.require(span(storages[ref.key], begin, size).view(ref.dtype), requirements="A")


def _tensor(ref: TensorRef, storages: Storages) -> np.ndarray:
    """The strided view a tensor is, checked to stay inside its storage (as_strided would read beyond)."""
    flat = _storage(ref.storage, storages)
    if ref.dtype != flat.dtype:
        flat = flat.view(ref.dtype)
    shape, stride = ref.shape, ref.stride
    if len(shape) != len(stride) or min((ref.offset, *shape, *stride)) < 0:
        raise CheckpointError(f"a tensor of shape {shape}, stride {stride}, offset {ref.offset} is impossible: damaged")
    if 0 in shape:
        return np.empty(shape, ref.dtype)
    last = ref.offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if last >= flat.size:
        raise CheckpointError(f"a tensor of shape {shape} reaches element {last} of a storage of {flat.size}: damaged")
    strides = [step * flat.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(flat[ref.offset :], shape, strides, writeable=False)


def span(mapped: np.ndarray, begin: int, size: int) -> np.ndarray:
    """`size` bytes from `begin`, or an error where the file ends before."""
    if min(begin, size) < 0 or begin + size > mapped.size:
        raise CheckpointError(f"incomplete: needs {size} bytes at {begin}, but ends at {mapped.size}. Fetch it again")
    return mapped[begin : begin + size]
