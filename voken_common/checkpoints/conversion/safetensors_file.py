"""`.safetensors` files: one set of weights under torch names, with configuration and checksums in the metadata.

The metadata entry `crc32` is a JSON object: the name of every tensor -> the CRC-32 of its bytes as they lie in the
file, and `__metadata__`, which no tensor can be called, -> that of what the file says about itself (see `_about`).
The entry `voken` says that there are checksums, so that a file that has lost them is damaged. Other programs read such
a file as any other. Files whose entry does not say so, from before it did, are read as they are if they have none.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from voken_common.checkpoints.steps import Meta, Weights, listed
from voken_common.errors import CheckpointError, DamagedError
from voken_common.untrusted.json_text import loads

META_KEY = "voken"
WEIGHTS_KEY = "weights"
CHECKSUMS_KEY = "crc32"
_EXPECTED = "checksums"
"""Key within the entry `voken`: the name of the entry with the checksums."""
_ABOUT = "__metadata__"
_ADVICE = "Get the file again, or read it without verification if you must (--no-verify, verify=False)"
_HEADER_LIMIT = 100_000_000
_ALIGNMENT = 8
_NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}

_TYPES = {code: np.dtype(getattr(ml_dtypes, name, name)) for name, code in _NAMES.items()} | {
    "U16": np.dtype("uint16"),
    "U32": np.dtype("uint32"),
    "U64": np.dtype("uint64"),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}


def is_safetensors(path: Path) -> bool:
    """True if a file begins as safetensors do: the length of a JSON header, and the header."""
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and 0 < int.from_bytes(start[:8], "little") <= _HEADER_LIMIT


def read_safetensors(
    path: str | Path, weights: Weights | None = None, *, verify: bool = True
) -> tuple[Meta, dict[str, np.ndarray]]:
    """Read a file that voken wrote.

    Args:
        path: the file.
        weights: the set that is wanted; None: whichever it holds.
        verify: whether to verify the checksums, where it has them.

    Returns:
        what it says about itself, and {torch name: array in torch layout}.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: not a safetensors file, without a configuration, or with the other set of weights.
        DamagedError: a tensor, or the configuration, is not what was written.
    """
    arrays, metadata = read_raw(path, verify=verify)
    meta, found = read_metadata(metadata, str(path))
    if meta is None:
        raise CheckpointError(
            f"{path} carries no configuration of voken in its metadata; voken-convert writes such files, and takes "
            "this one together with --config FILE"
        )
    if weights not in (None, found):
        raise CheckpointError(f"{path} holds the {found} weights, not the {weights} ones; convert those to a file too")
    return meta, arrays


def read_raw(path: str | Path, *, verify: bool = True) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and metadata of any safetensors file.

    Args:
        path: the file.
        verify: whether to verify the checksums, where voken wrote some into it.

    Raises:
        FileNotFoundError, CheckpointError, DamagedError: as `read_safetensors`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint file {path}")
    try:
        metadata = _metadata(path)
        arrays = _read_tensors(path)
    except (SafetensorError, KeyError, TypeError, ValueError, MemoryError) as error:
        raise CheckpointError(
            f"{path} is not a safetensors file, or it is damaged or incomplete ({path.stat().st_size} bytes; {error})"
        ) from error
    if verify and _has_checksums(metadata, path):
        _verify(arrays, metadata, path)
    return arrays, metadata


def read_meta_of(path: str | Path) -> Meta | None:
    """Read the description of a .safetensors file without its tensors; None if voken did not write it.

    Raises:
        CheckpointError, ConfigError: it is damaged, or was written by another version.
    """
    try:
        metadata = _metadata(Path(path))
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a safetensors file, or it is damaged or incomplete ({error})") from error
    return read_metadata(metadata, str(path))[0]


def read_label(path: str | Path) -> Weights:
    """Return the set of weights that a .safetensors file of voken holds."""
    return read_metadata(_metadata(Path(path)), str(path))[1] or "raw"


def _metadata(path: Path) -> dict[str, str]:
    """The metadata of a file whose header the library has checked: names, types, shapes, and that nothing overlaps."""
    with safe_open(path, framework="np") as file:
        return dict(file.metadata() or {})


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a file whose header has been checked, read and not mapped: memory holds them once."""
    arrays: dict[str, np.ndarray] = {}
    with path.open("rb", buffering=0) as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        for name, entry in sorted(header.items(), key=lambda item: item[1].get("data_offsets", [0])[0]):
            if name == _ABOUT:
                continue
            array = np.empty(entry["shape"], _TYPES[entry["dtype"]])
            file.seek(8 + length + entry["data_offsets"][0])
            _fill(array, file)
            arrays[name] = array
    return arrays


def _fill(array: np.ndarray, file: IO[bytes]) -> None:
    view, done = _bytes(array), 0
    while done < len(view):
        # Every unbuffered file has it; typing.IO does not say so.
        count = file.readinto(view[done:])  # type: ignore[attr-defined]
        if not count:
            raise ValueError("it ends too early")
        done += count


def _has_checksums(metadata: Mapping[str, str], path: Path) -> bool:
    """True if voken wrote checksums into a file.

    Raises:
        DamagedError: it did, and they are no longer there.
    """
    if CHECKSUMS_KEY in metadata:
        return META_KEY in metadata or f'"{_ABOUT}"' in metadata[CHECKSUMS_KEY]
    try:
        about = loads(metadata.get(META_KEY, "{}"), non_finite=True)
    except ValueError:
        about = None
    if not isinstance(about, dict) or _EXPECTED in about:
        raise DamagedError(f"{path} is damaged: the checksums that were written into it are not there. {_ADVICE}")
    return False


def _verify(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str], path: Path) -> None:
    """Raise DamagedError, which names the tensors, unless all bytes are those that were written."""
    try:
        expected = dict(loads(metadata[CHECKSUMS_KEY]))
    except (ValueError, TypeError) as error:
        raise DamagedError(f"{path} is damaged: its checksums cannot be read ({error}). {_ADVICE}") from error
    found = _checksums(arrays, metadata)
    bad = sorted((name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)), key=str)
    if bad:
        named = ["the configuration or the list of tensors" if name == _ABOUT else name for name in bad]
        raise DamagedError(f"{path} is damaged: not as they were written: {listed(named)}. {_ADVICE}")


def _checksums(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> dict[str, int]:
    """The CRC-32 of every tensor's bytes, and of what the file says about itself."""
    sums = {name: zlib.crc32(_bytes(array)) for name, array in arrays.items()}
    return sums | {_ABOUT: zlib.crc32(_about(arrays, metadata).encode())}


def _about(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    """Yield the description of a file in parts: configuration, set of weights, types and shapes by name."""
    layout = {name: [array.dtype.name, *array.shape] for name, array in arrays.items()}
    return metadata.get(META_KEY, "") + metadata.get(WEIGHTS_KEY, "") + json.dumps(layout, sort_keys=True)


def _bytes(array: np.ndarray) -> memoryview:
    """The bytes of an array as they lie in the file."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def read_metadata(metadata: Mapping[str, str], origin: str) -> tuple[Meta | None, Weights | None]:
    """Read voken's metadata of a file; None if another program wrote the file.

    Raises:
        CheckpointError, ConfigError: it was written by another version, or is damaged.
    """
    if META_KEY not in metadata:
        return None, None
    label = metadata.get(WEIGHTS_KEY)
    weights: Weights | None = "ema" if label == "ema" else "raw" if label == "raw" else None
    try:
        about = loads(metadata[META_KEY], non_finite=True)
    except ValueError as error:
        raise CheckpointError(f"{origin}: the configuration in its metadata cannot be read ({error})") from error
    return Meta.from_dict(about, origin), weights


def write_safetensors(file: IO[bytes], arrays: Mapping[str, np.ndarray], meta: Meta, weights: Weights) -> None:
    """Write one set of weights, tensor by tensor: the library's own writer wants all of them contiguous at once.

    Args:
        file: opened for writing.
        arrays: torch name -> array in torch layout, any strides.
        meta: what the file says about itself.
        weights: which set these are.

    Raises:
        CheckpointError: an array of a type that the format does not have.
    """
    unknown = {name: array.dtype for name, array in arrays.items() if array.dtype.name not in _NAMES}
    if unknown:
        raise CheckpointError(f"safetensors has no type for {unknown}; it has {', '.join(_NAMES)}")
    # The widest types first keep every tensor aligned.
    ordered = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    about = {"format": "pt", META_KEY: json.dumps(meta.to_dict() | {_EXPECTED: CHECKSUMS_KEY}), WEIGHTS_KEY: weights}
    about[CHECKSUMS_KEY] = json.dumps(_checksums(arrays, about), separators=(",", ":"))
    header: dict[str, Any] = {"__metadata__": about}
    position = 0
    for name in ordered:
        array = arrays[name]
        end = position + array.nbytes
        header[name] = {
            "dtype": _NAMES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for name in ordered:
        file.write(_bytes(arrays[name]))
