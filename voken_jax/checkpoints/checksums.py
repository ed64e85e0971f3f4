"""Steps of Orbax that carry checksums: written before a step gets its final name, verified before it is used."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ClassVar

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint._src.metadata import array_metadata_store
from orbax.checkpoint._src.path import atomicity

from voken_common.checkpoints import checksums as integrity
from voken_common.checkpoints.steps import ITEMS, Weights
from voken_common.untrusted.files import read_bytes
from voken_common.untrusted.json_text import loads
from voken_jax.checkpoints.ocdbt import stored_arrays

_STILL_CHANGING = ("_CHECKPOINT_METADATA", "commit_success.txt")
"""Orbax writes the time of the last rename into these; nothing is read from them."""


def _write_small_arrays_whole() -> None:
    """Orbax cuts each array into a piece per device that has a copy; for small ones that costs more than it saves."""
    handler = ocp.type_handlers.ArrayHandler(
        min_slice_bytes_for_replica_parallel=1 << 20, array_metadata_store=array_metadata_store.Store()
    )
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)
    ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)
    log.setLevel(level)


_write_small_arrays_whole()


class StepPath(atomicity.AtomicRenameTemporaryPath):
    """The temporary folder of a step, which gets its checksums before it gets its final name.

    So a step under its final name has them, whenever a run is killed. The primary process writes them for the files
    of all; with asynchronous saving it happens in the background, and so does what follows. `step_path` makes one for
    a run; items of a step are such paths too, and nothing happens to them.
    """

    sealed: ClassVar[bool] = True

    @staticmethod
    def committed() -> None:
        """Called by the primary process when a step has its final name."""

    async def finalize(self) -> None:
        """Write the checksums of a step (the items in it are finalized before, one by one), then rename it."""
        whole = self.get_final().name.isdecimal()
        if whole and self.sealed:
            await asyncio.to_thread(seal, Path(self.get()))
        await super().finalize()
        if whole:
            await asyncio.to_thread(self.committed)


def step_path(sealed: bool, committed: Callable[[], None]) -> type[StepPath]:
    """The temporary folders of one run's steps.

    Args:
        sealed: whether steps get checksums.
        committed: called by the primary process when a step has its final name; it must not wait for other processes.
    """
    return type("StepPath", (StepPath,), {"sealed": sealed, "committed": staticmethod(committed)})


def seal(step_folder: Path) -> None:
    """Write the checksums of a step that is complete."""
    integrity.write_checksums(step_folder, stored_arrays(step_folder), _STILL_CHANGING)


def step_problems(step_folder: Path, items: Iterable[str] | None = None) -> list[str]:
    """List the faults of a step, one line each; empty for a good one.

    A step without checksums is good as far as one can see, unless its own configuration asked for them.

    Args:
        step_folder: a step of Orbax.
        items: verify these items only; None: everything.
    """
    if integrity.has_checksums(step_folder):
        return integrity.problems(step_folder, items, lambda: stored_arrays(step_folder))
    return _missing_checksums(step_folder)


def visible_problems(step_folder: Path) -> list[str]:
    """List the faults of a step that show without reading its arrays, one line each."""
    if integrity.has_checksums(step_folder):
        return integrity.quick_problems(step_folder)
    return _missing_checksums(step_folder)


def _missing_checksums(step_folder: Path) -> list[str]:
    try:
        config = loads(read_bytes(step_folder / "meta" / "metadata"), non_finite=True)["config"]
        expected = config["checkpoint"].get("checksums", False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"meta/metadata cannot be read ({type(error).__name__}: {error})"]
    return [f"{integrity.FILE} is not there"] if expected else []


def needed_items(step_folder: Path, weights: Weights | None) -> list[str]:
    """The items that a reader of one set of weights opens; None: the averages if there are any."""
    there = [item for item in ITEMS.values() if (step_folder / item).is_dir()]
    return ["meta", ITEMS[weights] if weights else (there[0] if there else ITEMS["ema"])]
