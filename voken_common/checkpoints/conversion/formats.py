"""Reading a checkpoint file of any format; which one it is shows its content, never its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from voken_common.checkpoints import torch_pickle
from voken_common.checkpoints.conversion import lightning, torch_file
from voken_common.checkpoints.conversion.contents import Contents
from voken_common.checkpoints.conversion.safetensors_file import is_safetensors, read_metadata, read_raw
from voken_common.errors import CheckpointError, RefusedError

Objects = Literal["refuse", "skip"]
_EXPECTED = (
    "a Lightning checkpoint (state_dict), a checkpoint of voken (PyTorch .pt, or a directory of Orbax), or .safetensors"
)


def read_file(
    path: Path,
    objects: Objects = "refuse",
    load_trusted: Callable[[Path], Any] | None = None,
    *,
    verify: bool = True,
) -> Contents:
    """Read a checkpoint file; tensors of torch files are views of the mapped file.

    Args:
        path: the file.
        objects: what to do with a torch file that holds more than tensors and plain values: "refuse", or "skip" them.
            Nothing of them runs either way.
        load_trusted: reads a file that would be refused, and may run what is in it.
        verify: whether to verify the checksums of a .safetensors file; those of other files belong to who finds them.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: not a checkpoint, or a damaged one; RefusedError where it holds more than data.
        NameMismatch: weights that belong to no known kind of model.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}; expected {_EXPECTED}")
    if is_safetensors(path):
        return _read_safetensors(path, verify)
    _require_torch_file(path)
    root = _read_torch(path, objects, load_trusted)
    origin = str(path)
    if torch_file.is_own(root):
        return torch_file.to_contents(root, origin)
    if isinstance(root, Mapping) and ("state_dict" in root or lightning.find_state_dict(root) is not None):
        return lightning.to_contents(root, origin)
    found = f"entries {', '.join(map(str, list(root)[:8]))}" if isinstance(root, Mapping) else type(root).__name__
    raise CheckpointError(f"{path} is a torch file with {found}; expected {_EXPECTED}")


def _require_torch_file(path: Path) -> None:
    """Tell what is no checkpoint at all from a damaged one: torch writes zip archives, and pickles before."""
    with path.open("rb") as file:
        start = file.read(8)
    if start and not start.startswith((b"PK", b"\x80")):
        raise CheckpointError(f"{path} is no checkpoint: it starts with {start!r}; expected {_EXPECTED}")


def _read_torch(path: Path, objects: Objects, load_trusted: Callable[[Path], Any] | None) -> Any:
    try:
        return torch_pickle.load(path, unknown="inert" if objects == "skip" else "refuse")
    except RefusedError as error:
        if load_trusted is not None:
            return load_trusted(path)
        raise RefusedError(
            f"{error}. On the command line: --skip-objects does so, and runs nothing; --allow-pickle loads the file "
            "with torch and RUNS whatever code it holds"
        ) from error


def _read_safetensors(path: Path, verify: bool) -> Contents:
    arrays, metadata = read_raw(path, verify=verify)
    meta, weights = read_metadata(metadata, str(path))
    if meta is None:
        contents = lightning.to_contents(arrays, str(path))
        contents.format = "safetensors"
        return contents
    return Contents(
        str(path),
        "safetensors",
        meta.config,
        meta.step,
        meta.metrics,
        {weights or "raw": arrays},
        kind=meta.config.kind,
    )
