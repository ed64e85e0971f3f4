"""The names that a torch checkpoint may use, and what each becomes without torch.

A pickle calls what it names. This table is therefore the whole of what reading a checkpoint can call: constructors of
references to tensors and of plain containers. `voken_common.checkpoints.torch_pickle` turns the references into arrays.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import ml_dtypes
import numpy as np

from voken_common.checkpoints import numpy_globals
from voken_common.errors import CheckpointError, RefusedError

MOST_COPIED = 1_000_000
"""Items, and characters, that all calls of one constructor take from a file."""


@dataclass(frozen=True)
class DTypeRef:
    """A torch dtype, or the element type that a storage class stands for."""

    dtype: np.dtype

    def __setstate__(self, state: object) -> NoReturn:
        raise CheckpointError("changes a dtype after naming it; expected data only. Do not trust this file")


@dataclass(frozen=True)
class StorageRef:
    """A run of `count` elements from element `begin` of the storage `key`."""

    key: str
    dtype: np.dtype
    count: int
    begin: int = 0

    def __setstate__(self, state: object) -> NoReturn:
        raise CheckpointError("changes a storage after naming it; expected data only. Do not trust this file")


@dataclass(frozen=True)
class TensorRef:
    """A strided view of a storage; offset, shape and stride in elements."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: np.dtype

    def __setstate__(self, state: object) -> None:
        """Accept and drop what old parameters carry beside their data (hooks, requires_grad)."""


class Inert:
    """Stands for an object of a foreign class: its name, arguments and state as data; nothing of it was called.

    Tensors inside it stay references; only those in plain containers are read.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.arguments: tuple[Any, ...] = ()
        self.state: Any = None
        self.items: list[Any] = []

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def append(self, item: Any) -> None:
        """Take a list item."""
        self.items.append(item)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))

    def __repr__(self) -> str:
        return f"Inert({self.name})"


class _Constructor:
    """A callable that a pickle can call but not change: BUILD on it is refused, it has no attributes to set."""

    __slots__ = ("_call", "_left", "_name")

    def __init__(self, name: str, call: Callable[..., Any]) -> None:
        self._name = name
        self._call = call
        self._left = MOST_COPIED

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # One list may be handed over a million times, and each time be copied into a new container.
        self._left -= sum(len(value) for value in args if hasattr(value, "__len__"))
        if self._left < 0:
            raise CheckpointError(f"hands more than {MOST_COPIED} items to {self._name}: damaged, or made to do harm")
        return self._call(*args, **kwargs)

    def __setstate__(self, state: object) -> NoReturn:
        raise CheckpointError(f"sets attributes of {self._name}; expected data only. Do not trust this file")


def _inert_type(name: str) -> type[Inert]:
    """A class of its own, because some pickle instructions call `cls.__new__(cls, ...)`."""

    class Foreign(Inert):
        def __new__(cls, *args: Any, **kwargs: Any) -> Foreign:
            self = object.__new__(cls)
            Inert.__init__(self, name)
            self.arguments = args
            return self

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            """Keep what __new__ recorded."""

        def __hash__(self) -> int:
            return id(self)

    return Foreign


def _dtype(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name)) if hasattr(ml_dtypes, name) else np.dtype(name)


_STORAGE_DTYPES = {
    "DoubleStorage": _dtype("float64"),
    "FloatStorage": _dtype("float32"),
    "HalfStorage": _dtype("float16"),
    "BFloat16Storage": _dtype("bfloat16"),
    "LongStorage": _dtype("int64"),
    "IntStorage": _dtype("int32"),
    "ShortStorage": _dtype("int16"),
    "CharStorage": _dtype("int8"),
    "ByteStorage": _dtype("uint8"),
    "BoolStorage": _dtype("bool"),
    "ComplexFloatStorage": _dtype("complex64"),
    "ComplexDoubleStorage": _dtype("complex128"),
    "UntypedStorage": _dtype("uint8"),
}
_DTYPES = {
    name: _dtype(name)
    for name in (
        *("float64", "float32", "float16", "bfloat16", "complex64", "complex128", "bool"),
        *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"),
        *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"),
    )
} | {
    alias: _dtype(name)
    for alias, name in (("double", "float64"), ("float", "float32"), ("half", "float16"), ("long", "int64"))
}


def _tensor(storage: StorageRef, offset: int, shape: Any, stride: Any, *unused: Any) -> TensorRef:
    """torch._utils._rebuild_tensor and _v2; `unused`: requires_grad, hooks, metadata."""
    return TensorRef(storage, int(offset), _ints(shape), _ints(stride), storage.dtype)


def _tensor_v3(
    storage: StorageRef,
    offset: int,
    shape: Any,
    stride: Any,
    requires_grad: bool,
    hooks: Any,
    dtype: DTypeRef,
    *unused: Any,
) -> TensorRef:
    """torch._utils._rebuild_tensor_v3: bytes and a dtype, for the dtypes that have no storage class."""
    return TensorRef(storage, int(offset), _ints(shape), _ints(stride), dtype.dtype)


def _parameter(data: TensorRef, *unused: Any) -> TensorRef:
    """torch._utils._rebuild_parameter and torch.nn.Parameter: the tensor itself."""
    if not isinstance(data, TensorRef):
        raise CheckpointError(f"a parameter made of {type(data).__name__}; expected a tensor: damaged")
    return data


def _ints(values: Any) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _device(kind: str, index: int | None = None) -> str:
    return kind if index is None else f"{kind}:{index}"


_CONSTRUCTORS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("__builtin__", "frozenset"): frozenset,
    ("torch", "Size"): _ints,
    ("torch", "device"): _device,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_v3,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch.nn.parameter", "Parameter"): _parameter,
    # Tensors of an NPU: the first arguments are those of any tensor, the last is about the device.
    ("torch_npu.utils.storage", "_rebuild_npu_tensor"): _tensor,
    **numpy_globals.CONSTRUCTORS,
}


def find_global(module: str, name: str, *, inert: bool) -> Any:
    """Return the meaning of a pickle's `module.name`.

    Args:
        module, name: as the pickle spells them.
        inert: give a class of `Inert` for an unknown name instead of refusing it.

    Raises:
        RefusedError: the name is not in the table and `inert` is false.
    """
    full = f"{module}.{name}"
    if (module, name) in _CONSTRUCTORS:
        return _Constructor(full, _CONSTRUCTORS[module, name])
    if module in ("torch", "torch.cuda", "torch.storage") and name in _STORAGE_DTYPES:
        return DTypeRef(_STORAGE_DTYPES[name])
    if module == "torch" and name in _DTYPES:
        return DTypeRef(_DTYPES[name])
    if inert:
        return _inert_type(full)
    if module.startswith("__torch__"):
        raise RefusedError(f"refused: a TorchScript archive (it names {full}); expected a checkpoint of weights")
    raise RefusedError(
        f"refused: it names {full}, which is not data; expected tensors and plain containers. Nothing was run. If you "
        "trust the source, unknown='inert' reads the tensors and leaves such objects as inert records"
    )


def storage_from_id(pid: Any) -> StorageRef:
    """The storage that a pickle's persistent id means: ("storage", dtype, key, device, count[, view])."""
    if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage" or not isinstance(pid[1], DTypeRef):
        raise CheckpointError(f"refused: it refers to {pid!r:.80}; expected tensor storages only")
    key, dtype, count, begin = str(pid[2]), pid[1].dtype, int(pid[4]), 0
    if len(pid) == 6 and pid[5] is not None:
        _, begin, count = pid[5]
    return StorageRef(key, dtype, int(count), int(begin))
