"""Reads torch checkpoints without torch and without running anything they contain.

`torch.save` writes a pickle that names the functions to call when it is read back, which lets a hostile file run any
code. Here a pickle may name only the handful of constructors a tensor needs
(`voken_common.checkpoints.torch_globals`); any other name is refused before anything is called. Both layouts are
understood: the zip archive (torch 1.6 and later) and the stream of pickles before it, in which torchvision's VGG and
the LPIPS heads are published.

Arrays come back as read-only views of the memory-mapped file, so that opening a checkpoint of many gigabytes costs
address space, not memory; the file must not be overwritten in place while they are in use.
"""

from __future__ import annotations

import mmap
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from voken_common.checkpoints.torch_globals import DTypeRef, StorageRef, TensorRef, find_global, storage_from_id
from voken_common.errors import CheckpointError

Unknown = Literal["refuse", "inert"]

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
# What a damaged pickle or a damaged frame around it makes the standard library raise.
_DAMAGE = (
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    IndexError,
    KeyError,
    MemoryError,
    OSError,
    OverflowError,
    RecursionError,
    RuntimeError,
    TypeError,
    UnicodeDecodeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


def load(path: str | Path, *, unknown: Unknown = "refuse") -> Any:
    """Read a file written by `torch.save`.

    Args:
        path: the checkpoint.
        unknown: what to do with objects that are neither tensors nor plain Python: "refuse" stops with their names;
            "inert" leaves a `torch_globals.Inert` record in their place, still without calling anything.

    Returns:
        What was saved: dicts, lists, tuples and scalars as they are, tensors as read-only arrays (bfloat16 and float8
        by `ml_dtypes`), a torch dtype as a NumPy dtype, a device as a string. Tensors that
        shared memory share it still.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: the file is not a torch checkpoint, or is damaged or incomplete.
        RefusedError: it names something unknown.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint file {path}")
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(0)
        if not start:
            raise CheckpointError(f"{path} is empty; expected a torch checkpoint")
        try:
            if start == b"PK\x03\x04":
                root, storages = _read_zip(file, unknown)
            else:
                root, storages = _read_legacy(file, unknown)
            return _materialise(root, storages, set())
        except CheckpointError as error:
            raise type(error)(f"{path}: {error}") from error
        except _DAMAGE as error:
            raise CheckpointError(
                f"{path} is not a torch checkpoint, or it is damaged or incomplete ({path.stat().st_size} bytes; "
                f"{type(error).__name__}: {error}). Fetch or copy it again"
            ) from error


def load_state_dict(
    path: str | Path, key: str | None = "state_dict", *, unknown: Unknown = "refuse"
) -> dict[str, np.ndarray]:
    """Read the flat mapping of names to arrays of a checkpoint.

    Args:
        path: the checkpoint.
        key: the entry of the checkpoint that holds the mapping ("state_dict" for Lightning's), None for the whole file.
        unknown: see `load`.

    Returns:
        {torch state-dict key: array} in file order; read-only views as for `load`.

    Raises:
        FileNotFoundError, CheckpointError: as `load`; or the entry is missing or no mapping of names to tensors.
    """
    root = load(path, unknown=unknown)
    if key is not None:
        if not isinstance(root, Mapping) or key not in root:
            found = ", ".join(map(str, list(root)[:8])) if isinstance(root, Mapping) else type(root).__name__
            raise CheckpointError(
                f"{path} has no entry {key!r}; found: {found}. Pass key=None if the file is the mapping"
            )
        root = root[key]
    if not isinstance(root, Mapping):
        raise CheckpointError(f"{path}: expected a mapping of names to tensors, found {type(root).__name__}")
    for name, value in root.items():
        if not isinstance(name, str) or not isinstance(value, np.ndarray):
            raise CheckpointError(
                f"{path}: entry {name!r} is {type(value).__name__}; expected only tensors under names. "
                "Pass key= with the entry that holds the state dict"
            )
    return dict(root)


def storage_names(path: str | Path) -> dict[str, str]:
    """Archive member -> dotted name of a tensor in it, for a file of the zip layout; the data is not looked at.

    Raises:
        CheckpointError: it cannot be read.
    """
    names: dict[str, str] = {}

    def visit(value: Any, name: str) -> None:
        if isinstance(value, TensorRef):
            names.setdefault(f"{folder}data/{value.storage.key}", name)
        elif isinstance(value, Mapping):
            for key, item in value.items():
                visit(item, f"{name}.{key}" if name else str(key))

    try:
        with zipfile.ZipFile(path) as archive:
            folder = next(name for name in archive.namelist() if name.endswith("/data.pkl")).removesuffix("data.pkl")
            with archive.open(f"{folder}data.pkl") as stream:
                visit(_Unpickler(stream, "inert").load(), "")
    except (*_DAMAGE, StopIteration) as error:
        raise CheckpointError(f"{path} cannot be read ({type(error).__name__}: {error})") from error
    return names


class _Unpickler(pickle.Unpickler):
    """Builds plain Python and tensor references; looks names up in the table of `torch_globals` and nowhere else."""

    def __init__(self, file: IO[bytes], unknown: Unknown) -> None:
        super().__init__(file, encoding="utf-8")
        self._inert = unknown == "inert"

    def find_class(self, module: str, name: str) -> Any:
        return find_global(module, name, inert=self._inert)

    def persistent_load(self, pid: Any) -> StorageRef:
        return storage_from_id(pid)


def _read_zip(file: IO[bytes], unknown: Unknown) -> tuple[Any, dict[str, np.ndarray]]:
    """The zip layout: `NAME/data.pkl` beside one uncompressed member `NAME/data/KEY` per storage."""
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise CheckpointError("a zip archive without data.pkl; expected one written by torch.save")
        folder = pickles[0].removesuffix("data.pkl")
        order = archive.read(folder + "byteorder") if folder + "byteorder" in members else b"little"
        _require_little_endian(order == b"little")
        with archive.open(pickles[0]) as stream:
            root = _Unpickler(stream, unknown).load()
        mapped = _map(file)
        prefix = folder + "data/"
        storages = {
            name.removeprefix(prefix): _zip_member(archive, info, mapped)
            for name, info in members.items()
            if name.startswith(prefix)
        }
    return root, storages


def _zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, mapped: np.ndarray) -> np.ndarray:
    """The bytes of a member: a view of the map where stored plainly, a copy where someone recompressed the file."""
    if info.compress_type != zipfile.ZIP_STORED:
        return np.frombuffer(archive.read(info), np.uint8)
    header = mapped[info.header_offset : info.header_offset + 30].tobytes()
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    begin = info.header_offset + 30 + name_length + extra_length
    return _span(mapped, begin, info.file_size)


def _read_legacy(file: IO[bytes], unknown: Unknown) -> tuple[Any, dict[str, np.ndarray]]:
    """The stream layout: magic, protocol, system, object, storage keys, then per storage its length and data."""
    if _Unpickler(file, "refuse").load() != _LEGACY_MAGIC:
        raise CheckpointError("a pickle, but not one of torch.save; expected a torch checkpoint")
    protocol = _Unpickler(file, "refuse").load()
    if protocol != _LEGACY_PROTOCOL:
        raise CheckpointError(f"torch file protocol {protocol!r}; expected {_LEGACY_PROTOCOL}")
    _require_little_endian(_Unpickler(file, "refuse").load()["little_endian"])
    unpickler = _LegacyUnpickler(file, unknown)
    root = unpickler.load()
    keys = _Unpickler(file, "refuse").load()
    mapped = _map(file)
    position = file.tell()
    storages: dict[str, np.ndarray] = {}
    for key in keys:
        (count,) = struct.unpack("<q", _span(mapped, position, 8).tobytes())
        if key not in unpickler.dtypes:
            raise CheckpointError(f"storage {key!r} is listed but no tensor uses it: the file is damaged")
        size = count * unpickler.dtypes[key].itemsize
        storages[key] = _span(mapped, position + 8, size)
        position += 8 + size
    return root, storages


class _LegacyUnpickler(_Unpickler):
    """Remembers each storage's dtype: the stream gives lengths in elements."""

    def __init__(self, file: IO[bytes], unknown: Unknown) -> None:
        super().__init__(file, unknown)
        self.dtypes: dict[str, np.dtype] = {}

    def persistent_load(self, pid: Any) -> StorageRef:
        ref = super().persistent_load(pid)
        self.dtypes[ref.key] = ref.dtype
        return ref


def _require_little_endian(little: bool) -> None:
    if not little:
        raise CheckpointError("written on a big-endian machine; expected little-endian. Save it again there as such")


def _map(file: IO[bytes]) -> np.ndarray:
    """The whole file as read-only bytes; the map lives as long as an array that views it."""
    return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


def _span(mapped: np.ndarray, begin: int, size: int) -> np.ndarray:
    """`size` bytes from `begin`, or an error where the file ends before."""
    if min(begin, size) < 0 or begin + size > mapped.size:
        raise CheckpointError(f"incomplete: needs {size} bytes at {begin}, but ends at {mapped.size}. Fetch it again")
    return mapped[begin : begin + size]


def _materialise(value: Any, storages: dict[str, np.ndarray], seen: set[int]) -> Any:
    """Replace tensor references by arrays; dicts and lists are changed in place, which also ends cycles."""
    if isinstance(value, TensorRef):
        return _tensor(value, storages)
    if isinstance(value, StorageRef):
        return _storage(value, storages)
    if isinstance(value, DTypeRef):
        return value.dtype
    if isinstance(value, tuple):
        return tuple(_materialise(item, storages, seen) for item in value)
    if isinstance(value, dict | list) and id(value) not in seen:
        seen.add(id(value))
        if isinstance(value, OrderedDict):
            vars(value).clear()  # torch's _metadata; attributes from a file could also hide methods
        for key in value if isinstance(value, dict) else range(len(value)):
            value[key] = _materialise(value[key], storages, seen)
    return value


def _storage(ref: StorageRef, storages: dict[str, np.ndarray]) -> np.ndarray:
    """The elements of a storage, 1-D."""
    if ref.key not in storages:
        raise CheckpointError(f"storage {ref.key!r} is missing from the file: it is damaged")
    begin, size = ref.begin * ref.dtype.itemsize, ref.count * ref.dtype.itemsize
    # The bytes may lie unaligned in the old layout; only then is a copy made.
    return np.require(_span(storages[ref.key], begin, size).view(ref.dtype), requirements="A")


def _tensor(ref: TensorRef, storages: dict[str, np.ndarray]) -> np.ndarray:
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
