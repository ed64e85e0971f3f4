"""Reads torch checkpoints without torch and without running anything they contain.

`torch.save` writes a pickle that names the functions to call when it is read back, which lets a hostile file run any
code. Here a pickle may name only the handful of constructors a tensor needs
(`voken_common.checkpoints.torch_globals`); any other name is refused before anything is called. Both layouts are
understood: the zip archive (torch 1.6 and later) and the stream of pickles before it, in which torchvision's VGG and
the LPIPS heads are published. Every pickle is walked first (`voken_common.untrusted.pickles`), so that none that was
made to exhaust memory, time or the stack reaches the standard library's reader.

Arrays come back as read-only views of the memory-mapped file, so that opening a checkpoint of many gigabytes costs
address space, not memory; the file must not be overwritten in place while they are in use.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from voken_common.checkpoints.torch_arrays import ALLOWANCE, DEEPEST, GROWTH, Contents, Storages, span
from voken_common.checkpoints.torch_globals import StorageRef, TensorRef, find_global, storage_from_id
from voken_common.errors import CheckpointError
from voken_common.untrusted.archives import open_zip, read_member
from voken_common.untrusted.limits import LimitError
from voken_common.untrusted.pickles import LARGEST, pickle_end
from voken_common.untrusted.text import shown

Unknown = Literal["refuse", "inert"]

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_LEGACY_PICKLES = 5
"""Magic, protocol, system, content, keys."""
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
    with _opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if _is_zip(file):
            root, storages = _read_zip(file, unknown)
        else:
            root, storages = _read_legacy(file, unknown)
        return Contents(storages, GROWTH * size + ALLOWANCE).materialise(root)


def require_bounded(path: str | Path) -> None:
    """Raise CheckpointError unless a file's pickles are cheap to read, whoever reads them: see the top of this file."""
    with _opened(path) as file:
        if _is_zip(file):
            data, _, _, archive = _zip_pickle(file)
            archive.close()
            _Unpickler(io.BytesIO(data), "inert").load()
            return
        position, mapped = 0, _mapped(file)
        for _ in range(_LEGACY_PICKLES):
            end = pickle_end(mapped, position)
            _Unpickler(io.BytesIO(mapped[position:end]), "inert").load()
            position = end


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[IO[bytes]]:
    """A checkpoint file; what goes wrong with it within is an error that names it."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint file {path}")
    with path.open("rb") as file:
        try:
            yield file
        except LimitError as error:
            raise CheckpointError(
                f"{path} is not a torch checkpoint, or it is damaged or was made to do harm "
                f"({path.stat().st_size} bytes): {error}"
            ) from error
        except CheckpointError as error:
            raise type(error)(f"{path}: {error}") from error
        except _DAMAGE as error:
            raise CheckpointError(
                f"{path} is not a torch checkpoint, or it is damaged or incomplete ({path.stat().st_size} bytes; "
                f"{type(error).__name__}: {error}). Fetch or copy it again"
            ) from error


def _is_zip(file: IO[bytes]) -> bool:
    start = file.read(4)
    file.seek(0)
    if not start:
        raise CheckpointError("is empty; expected a torch checkpoint")
    return start == b"PK\x03\x04"


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
        elif isinstance(value, Mapping) and name.count(".") < DEEPEST:
            for key, item in value.items():
                visit(item, f"{name}.{key}" if name else str(key))

    with _opened(path) as file:
        data, folder, _, archive = _zip_pickle(file)
        archive.close()
        visit(_Unpickler(io.BytesIO(data), "inert").load(), "")
    return names


class _Unpickler(pickle.Unpickler):
    """Builds plain Python and tensor references; looks names up in the table of `torch_globals` and nowhere else."""

    def __init__(self, file: IO[bytes], unknown: Unknown) -> None:
        super().__init__(file, encoding="utf-8")
        self._inert = unknown == "inert"
        self._found: dict[tuple[str, str], Any] = {}
        self.keys: dict[str, np.dtype] = {}
        """Storages that tensors use, and their types: the old layout gives lengths in elements."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._found:
            self._found[module, name] = find_global(module, name, inert=self._inert)
        return self._found[module, name]

    def persistent_load(self, pid: Any) -> StorageRef:
        ref = storage_from_id(pid)
        self.keys[ref.key] = ref.dtype
        return ref


def _zip_pickle(file: IO[bytes]) -> tuple[bytes, str, dict[str, zipfile.ZipInfo], zipfile.ZipFile]:
    """(the pickle of a zip archive, the folder in which it lies, all members by name, the opened archive)."""
    archive = open_zip(file)
    members = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise CheckpointError("a zip archive without data.pkl; expected one written by torch.save")
    folder = pickles[0].removesuffix("data.pkl")
    order = read_member(archive, members[folder + "byteorder"], 16) if folder + "byteorder" in members else b"little"
    _require_little_endian(order == b"little")
    data = read_member(archive, members[pickles[0]], LARGEST)
    pickle_end(data)
    return data, folder, members, archive


def _read_zip(file: IO[bytes], unknown: Unknown) -> tuple[Any, Storages]:
    """The zip layout: `NAME/data.pkl` beside one uncompressed member `NAME/data/KEY` per storage."""
    data, folder, members, archive = _zip_pickle(file)
    with archive:
        unpickler = _Unpickler(io.BytesIO(data), unknown)
        root = unpickler.load()
        mapped = _map(file)
        # Of a recompressed file only what a tensor names is unpacked.
        return root, {
            key: _zip_member(archive, members[f"{folder}data/{key}"], mapped)
            for key in unpickler.keys
            if f"{folder}data/{key}" in members
        }


def _zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, mapped: np.ndarray) -> np.ndarray:
    """The bytes of a member: a view of the map where stored plainly, a copy where someone recompressed the file."""
    if info.compress_type != zipfile.ZIP_STORED:
        return np.frombuffer(read_member(archive, info, info.file_size), np.uint8)
    header = mapped[info.header_offset : info.header_offset + 30].tobytes()
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    begin = info.header_offset + 30 + name_length + extra_length
    return span(mapped, begin, info.file_size)


def _read_legacy(file: IO[bytes], unknown: Unknown) -> tuple[Any, Storages]:
    """The stream layout: magic, protocol, system, object, storage keys, then per storage its length and data."""
    content, position = _mapped(file), 0

    def following(unpickler: type[_Unpickler], unknown: Unknown) -> _Unpickler:
        nonlocal position
        end = pickle_end(content, position)
        stream, position = io.BytesIO(content[position:end]), end
        return unpickler(stream, unknown)

    if following(_Unpickler, "refuse").load() != _LEGACY_MAGIC:
        raise CheckpointError("a pickle, but not one of torch.save; expected a torch checkpoint")
    protocol = following(_Unpickler, "refuse").load()
    if protocol != _LEGACY_PROTOCOL:
        raise CheckpointError(f"torch file protocol {shown(repr(protocol))}; expected {_LEGACY_PROTOCOL}")
    _require_little_endian(following(_Unpickler, "refuse").load()["little_endian"])
    unpickler = following(_Unpickler, unknown)
    root = unpickler.load()
    keys = following(_Unpickler, "refuse").load()
    mapped = _map(file)
    storages: dict[str, np.ndarray] = {}
    for key in keys:
        (count,) = struct.unpack("<q", span(mapped, position, 8).tobytes())
        if key not in unpickler.keys:
            raise CheckpointError(f"storage {key!r} is listed but no tensor uses it: the file is damaged")
        size = count * unpickler.keys[key].itemsize
        storages[key] = span(mapped, position + 8, size)
        position += 8 + size
    return root, storages


def _require_little_endian(little: bool) -> None:
    if not little:
        raise CheckpointError("written on a big-endian machine; expected little-endian. Save it again there as such")


def _mapped(file: IO[bytes]) -> mmap.mmap:
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _map(file: IO[bytes]) -> np.ndarray:
    """The whole file as read-only bytes; the map lives as long as an array that views it."""
    return np.frombuffer(_mapped(file), np.uint8)
