"""Checkpoints that explain themselves: weights, optimizer state, data position and configuration of a step in one file.

`WORKDIR/checkpoints/<step>.pt` is a dict as `torch.save` writes it, of plain values and tensors on the CPU: what
`Meta.to_dict` says, `generator` and `generator_ema` (weights by name), `rest` (everything else of the state) and `data`
(the iterator's position). A file for inference has no `rest`, no `data`, and at least one set of weights. Files are
written by the first process under a temporary name and renamed when they are whole. The archive holds a checksum per
tensor, which is verified before a file is used.
"""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar, cast

import torch
from torch import Tensor

from voken_common.atomic_write import replacing
from voken_common.checkpoints import torch_pickle
from voken_common.checkpoints.checksums import zip_problems
from voken_common.checkpoints.keeping import RunSteps, StepFiles
from voken_common.checkpoints.steps import (
    FOLDER,
    ITEMS,
    Meta,
    Progress,
    Step,
    Weights,
    choose_step,
    describe_missing,
    failed_write,
    require_good,
)
from voken_common.config.loading import AnyConfig
from voken_common.config.schema.generator import GeneratorCheckpointConfig
from voken_common.config.schema.run import CheckpointConfig
from voken_common.errors import CheckpointError
from voken_torch.parallel.sharding import gathered, processes

FORMAT = "voken"
_UNREADABLE = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile)


class State(Protocol):
    """Everything that changes between two steps; its tensors change in place."""

    step: int

    def to_dict(self) -> dict[str, Any]:
        """Everything as nested dictionaries of tensors."""

    def load_dict(self, values: dict[str, Any]) -> None:
        """Inverse of `to_dict`."""


S = TypeVar("S", bound=State)


class Positioned(Protocol):
    """An iterator whose position can be saved."""

    def get_state(self) -> dict[str, int]:
        """The position."""

    def set_state(self, state: dict[str, int]) -> None:
        """Move to a position."""


class Checkpoints:
    """The steps kept in one work directory.

    Args:
        workdir: its `checkpoints` folder is used.
        config: how many to keep, and by which metric the best are chosen.
    """

    def __init__(self, workdir: str | Path, config: CheckpointConfig | GeneratorCheckpointConfig):
        self._folder = Path(workdir) / FOLDER
        files = StepFiles(steps_in, read_meta, _no_problems, file_problems)
        self._steps = RunSteps(self._folder, config, files, processes(torch.device("cpu")))

    def latest_step(self) -> int | None:
        """Return the newest step on disk that is not damaged, or None; damaged ones after it are reported.

        All processes call it, the first one looks.

        Raises:
            DamagedError: there are steps, and all are damaged.
        """
        return self._steps.latest()

    def recover(self) -> int | None:
        """`latest_step`, for the run that holds the directory: half-written and damaged steps leave its way."""
        return self._steps.recover()

    def save(
        self,
        state: State,
        config: AnyConfig,
        iterator: Positioned,
        metrics: dict[str, float],
        progress: Progress | None = None,
    ) -> None:
        """Write the current step, then drop what need not be kept. All processes call it, the first one writes.

        Raises:
            CheckpointError: it cannot be written, on all processes; the steps before are as they were.
        """
        # Split weights become whole for the file, so that any number of processes continues from it.
        values = gathered(state.to_dict())

        def write() -> None:
            if state.step in steps_in(self._folder):
                return
            del values["step"]
            weights = {item: values.pop(item) for item in ITEMS.values()}
            content = {
                "format": FORMAT,
                **Meta(config, state.step, metrics, progress or Progress()).to_dict(),
                **{item: tensors for item, tensors in weights.items() if tensors},
                "rest": values,
                "data": iterator.get_state(),
            }
            self._write(state.step, content)
            self._steps.drop_old()

        self._steps.by_first(write)
        self._steps.changed()

    def restore(self, state: S, iterator: Positioned) -> S:
        """Bring state and iterator to the newest step.

        Raises:
            CheckpointError: it cannot be read, or was written for inference only.
            NameMismatch: it belongs to other networks.
        """
        path = self._folder / f"{self.latest_step()}.pt"
        content = read(path)
        if "rest" not in content or "data" not in content:
            raise CheckpointError(f"{path} holds weights alone, for inference; training continues from a whole state")
        weights = {item: content.get(item, {}) for item in ITEMS.values()}
        state.load_dict({"step": torch.tensor(content["step"]), **weights, **content["rest"]})
        iterator.set_state(content["data"])
        return state

    def close(self) -> None:
        """Do nothing: a step is written when `save` returns."""

    def meta(self, step: int) -> Meta:
        """Read the description of a step on disk."""
        return read_meta(self._folder / f"{step}.pt")

    def _write(self, step: int, content: dict[str, Any]) -> None:
        try:
            with replacing(self._folder / f"{step}.pt") as file:
                _save(content, file)
        except (OSError, RuntimeError) as error:
            raise failed_write(step, self._folder, error, sorted(steps_in(self._folder))) from error


def steps_in(folder: Path) -> dict[int, Path]:
    """Number -> file of the steps of a folder."""
    return {int(path.stem): path for path in folder.glob("*.pt") if path.stem.isdecimal()}


def file_problems(path: Path) -> list[str]:
    """List the faults of a checkpoint file, one line each; empty for a good one."""
    found = zip_problems(path, lambda: torch_pickle.storage_names(path))
    if not found:
        try:
            torch_pickle.require_bounded(path)
            # torch and the standard library do not see the same damage to an archive's table of contents.
            torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except _UNREADABLE as error:
            found = [f"{path.name} cannot be read ({_reason(error)[:200]})"]
    return found


def _reason(error: Exception) -> str:
    """Return torch's message without its advice to load the file by running its contents."""
    if isinstance(error, pickle.UnpicklingError):
        return "it holds objects that are neither tensors nor plain values; nothing of it was run"
    return str(error).partition("\n")[0]


def find_step(checkpoint: str | Path, step: Step = "latest", *, verify: bool = True) -> Path:
    """The file of one step; damaged ones are passed over with a warning.

    Args:
        checkpoint: a work directory, its `checkpoints` folder, or a checkpoint file.
        step: a number, `latest`, or `best` by the run's own metric.
        verify: whether to read the whole file and verify its checksums.

    Raises:
        CheckpointError: nothing there, or not that step.
        DamagedError: it is damaged, and asked for by number or as a file, or there is no good one.
    """
    path = Path(checkpoint)
    problems = file_problems if verify else _no_problems
    if path.is_file():
        if path.suffix == ".pt" and zipfile.is_zipfile(path):
            require_good(path, problems(path), [])
        return path
    steps = steps_in(path / FOLDER) or steps_in(path)
    if not steps:
        raise CheckpointError(describe_missing(path, "python -m voken_torch.train", "<step>.pt"))
    return choose_step(steps, step, read_meta, problems)


def read_meta(path: Path) -> Meta:
    """Configuration, step and metrics of a checkpoint file; its tensors stay on the disk."""
    return Meta.from_dict(_checked(torch_pickle.load(path), path), origin=str(path))


def read(path: Path) -> dict[str, Any]:
    """The whole content, tensors on the CPU and mapped from the file where the system can.

    Raises:
        CheckpointError: not such a file, or damaged.
    """
    try:
        torch_pickle.require_bounded(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except CheckpointError:
        raise
    except _UNREADABLE as error:
        raise CheckpointError(f"{path} cannot be read ({_reason(error)}); it is damaged or no checkpoint") from error
    return _checked(content, path)


def load_generator(path: Path, weights: Weights | None = None) -> dict[str, Tensor]:
    """One set of weights of a checkpoint file by name.

    Args:
        path: as `find_step` gives it.
        weights: `ema` (averages), `raw`, or None: the averages if there are any.

    Raises:
        CheckpointError: that set is not in the file.
    """
    content = read(path)
    present = [kind for kind, item in ITEMS.items() if item in content]
    chosen = weights or next(iter(present), "ema")
    if chosen not in present:
        raise CheckpointError(f"{path} has no {chosen} weights; it has: {', '.join(present) or 'none'}")
    return dict(content[ITEMS[chosen]])


class _Target:
    """File that remembers why a write failed: torch only says that one did."""

    def __init__(self, file: IO[bytes]):
        self._file, self.error = file, cast(OSError | None, None)

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self._file.flush()


def _save(content: dict[str, Any], file: IO[bytes]) -> None:
    target = _Target(file)
    try:
        torch.save(content, cast(IO[bytes], target))
    except RuntimeError as error:
        raise target.error or error from error
    if target.error:
        raise target.error


def _no_problems(_: Path) -> list[str]:
    return []


def _checked(content: Any, path: Path) -> dict[str, Any]:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = ", ".join(map(str, list(content)[:6])) if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(
            f"{path} is not a checkpoint of voken_torch (found: {found}); published checkpoints become one by "
            "`voken-convert SRC DST.pt`"
        )
    return content
