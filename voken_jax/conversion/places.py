"""Find the source of a conversion, and replace its target only when the new one is complete."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path

from voken_common.checkpoints.checksums import zip_problems
from voken_common.checkpoints.conversion import torch_file
from voken_common.checkpoints.conversion.contents import Format
from voken_common.checkpoints.conversion.formats import read_file
from voken_common.checkpoints.steps import FOLDER, Meta, Step, choose_step, require_good
from voken_common.checkpoints.torch_pickle import storage_names
from voken_common.errors import CheckpointError
from voken_jax.checkpoints.checksums import step_problems
from voken_jax.checkpoints.orbax import read_meta

SUFFIXES: dict[str, Format] = {".pt": "torch", ".safetensors": "safetensors", ".ckpt": "lightning"}
CONFIG_FILE = "config.yaml"


def find_source(path: Path, step: Step = "latest", *, verify: bool = True) -> Path:
    """The file or the folder of Orbax items to read.

    Args:
        path: a file, a work directory of either framework, its `checkpoints`, or the folder of one step.
        step: which step of a work directory.
        verify: whether to verify the checksums of what is found.

    Raises:
        CheckpointError: there is nothing to read, or two checkpoints of that step.
        DamagedError: its bytes are not those that were written.
    """
    problems = _problems if verify else lambda _: []
    if path.is_file() or (path / "meta").is_dir():
        require_good(path, problems(path), [])
        return path
    root = path / FOLDER if (path / FOLDER).is_dir() else path
    orbax = {int(p.name): p for p in root.glob("*") if p.name.isdecimal() and (p / "meta").is_dir()}
    torch = {int(p.stem): p for p in root.glob("*.pt") if p.stem.isdecimal() and p.is_file()}
    steps = torch | orbax
    if not steps:
        found = ", ".join(sorted(p.name for p in path.glob("*"))[:8]) if path.is_dir() else "no such file or folder"
        raise CheckpointError(
            f"no checkpoint at {path} (found: {found or 'an empty folder'}); expected a file, or a work directory "
            f"with {FOLDER}/<step>/meta (JAX) or {FOLDER}/<step>.pt (PyTorch)"
        )
    chosen = choose_step(steps, step, _read_meta, problems)
    number = int(chosen.stem)
    if number in orbax and number in torch:
        raise CheckpointError(
            f"{root} has step {number} of both frameworks: name {orbax[number].name} or {torch[number].name} in it"
        )
    return chosen


def target_format(path: Path, asked: Format | None) -> Format:
    """The format to write, from `--to` or else the suffix; a name without a known suffix is a directory of Orbax.

    Raises:
        CheckpointError: the two contradict each other.
    """
    by_suffix = SUFFIXES.get(path.suffix)
    needs = {"safetensors": ".safetensors", "lightning": ".ckpt"}
    if asked is None:
        return by_suffix or "orbax"
    if by_suffix not in (None, asked) or (asked in needs and by_suffix is None):
        expected = f"a name that ends in {needs[asked]}" if asked in needs else "another name"
        raise CheckpointError(f"{path} does not look like what --to {asked} writes; expected {expected}")
    return asked


def is_directory(path: Path, target: Format) -> bool:
    """True if the target is a work directory, in which training can continue, and not a file."""
    return target == "orbax" or (target == "torch" and path.suffix != ".pt")


def check_target(path: Path, source: Path, target: Format, overwrite: bool) -> None:
    """Stop before anything is read if the target may not be written.

    Raises:
        CheckpointError: it exists, or is or contains the source.
    """
    here, from_here = path.resolve(), source.resolve()
    if here == from_here or here in from_here.parents:
        raise CheckpointError(f"the target {path} is or contains the source {source}; choose another name")
    if not path.exists() or (path.is_dir() and is_directory(path, target) and not any(path.iterdir())):
        return
    if not overwrite:
        raise CheckpointError(f"{path} exists; pass --overwrite to replace it, or choose another name")
    if path.is_dir() != is_directory(path, target):
        kind = "a directory" if path.is_dir() else "a file"
        raise CheckpointError(f"{path} is {kind}, which --overwrite does not replace by the other")
    if path.is_dir() and (others := sorted(p.name for p in path.iterdir() if p.name not in (FOLDER, CONFIG_FILE))):
        raise CheckpointError(
            f"{path} holds more than voken-convert writes ({', '.join(others[:8])}), so --overwrite does not replace "
            "it; remove it yourself or choose another name"
        )


@contextlib.contextmanager
def replacing_directory(path: Path) -> Iterator[Path]:
    """A directory to fill that becomes `path` when the block ends without an error, and vanishes otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex
    partial, old = (path.with_name(f"{path.name}.{mark}.{end}") for end in ("part", "old"))
    try:
        partial.mkdir()
        yield partial
        if path.exists():
            os.replace(path, old)
        os.replace(partial, path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        if old.exists() and not path.exists():
            os.replace(old, path)
        shutil.rmtree(partial, ignore_errors=True)


def _problems(place: Path) -> list[str]:
    """Damage to what voken itself writes; other files carry nothing to be compared with, or are checked as read."""
    if place.is_dir():
        return step_problems(place)
    if place.suffix == ".pt" and zipfile.is_zipfile(place):
        return zip_problems(place, lambda: storage_names(place))
    return []


def _read_meta(place: Path) -> Meta:
    if place.is_dir():
        return read_meta(place)
    contents = read_file(place)
    if contents.config is None:
        raise CheckpointError(f"{place} is not a checkpoint of voken ({torch_file.FORMAT}), so no step is the best")
    return contents.meta
