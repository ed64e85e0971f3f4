"""Checkpoints that explain themselves: weights, optimizer state, data position and configuration of a step in one file.

`WORKDIR/checkpoints/<step>.pt` is a dict as `torch.save` writes it, of plain values and tensors on the CPU: what
`Meta.to_dict` says, `generator` and `generator_ema` (weights by name), `rest` (everything else of the state) and `data`
(the iterator's position). A file for inference has no `rest`, no `data`, and at least one set of weights. Files are
written by the first process under a temporary name and renamed when they are whole.
"""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from voken_common import torch_pickle
from voken_common.checkpoints import (
    FOLDER,
    ITEMS,
    Meta,
    Step,
    Weights,
    choose_step,
    describe_missing,
    kept_steps,
)
from voken_common.errors import CheckpointError
from voken_common.files import replacing
from voken_common.schema import CheckpointConfig, Config
from voken_torch.sharding import process_index, wait_for_all
from voken_torch.state import TrainState

FORMAT = "voken"
_UNREADABLE = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile)


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

    def __init__(self, workdir: str | Path, config: CheckpointConfig):
        self._folder, self._config = Path(workdir) / FOLDER, config

    def latest_step(self) -> int | None:
        """The newest step on disk, or None."""
        return max(steps_in(self._folder), default=None)

    def save(self, state: TrainState, config: Config, iterator: Positioned, metrics: dict[str, float]) -> None:
        """Write the current step, then drop what need not be kept. All processes call it, the first one writes."""
        if process_index() == 0 and state.step not in steps_in(self._folder):
            values = state.to_dict()
            del values["step"]
            content = {
                "format": FORMAT,
                **Meta(config, state.step, metrics).to_dict(),
                **{item: on_cpu(values.pop(item)) for item in ITEMS.values()},
                "rest": on_cpu(values),
                "data": iterator.get_state(),
            }
            with replacing(self._folder / f"{state.step}.pt") as file:
                torch.save(content, file)
            self._drop_old()
        wait_for_all()

    def restore(self, state: TrainState, iterator: Positioned) -> None:
        """Bring state and iterator to the newest step.

        Raises:
            CheckpointError: it cannot be read, or was written for inference only.
            NameMismatch: it belongs to other networks.
        """
        path = steps_in(self._folder)[max(steps_in(self._folder))]
        content = read(path)
        if "rest" not in content or "data" not in content:
            raise CheckpointError(f"{path} holds weights alone, for inference; training continues from a whole state")
        weights = {item: content[item] for item in ITEMS.values()}
        state.load_dict({"step": torch.tensor(content["step"]), **weights, **content["rest"]})
        iterator.set_state(content["data"])

    def meta(self, step: int) -> Meta:
        """What a step on disk says about itself."""
        return read_meta(self._folder / f"{step}.pt")

    def _drop_old(self) -> None:
        steps = steps_in(self._folder)
        kept = kept_steps({step: read_meta(path).metrics for step, path in steps.items()}, self._config)
        for step in set(steps) - kept:
            steps[step].unlink()


def steps_in(folder: Path) -> dict[int, Path]:
    """Number -> file of the steps of a folder."""
    return {int(path.stem): path for path in folder.glob("*.pt") if path.stem.isdecimal()}


def find_step(checkpoint: str | Path, step: Step = "latest") -> Path:
    """The file of one step.

    Args:
        checkpoint: a work directory, its `checkpoints` folder, or a checkpoint file.
        step: a number, `latest`, or `best` by the run's own metric.

    Raises:
        CheckpointError: nothing there, or not that step.
    """
    path = Path(checkpoint)
    if path.is_file():
        return path
    steps = steps_in(path / FOLDER) or steps_in(path)
    if not steps:
        raise CheckpointError(describe_missing(path, "python -m voken_torch.train", "<step>.pt"))
    return choose_step(steps, step, read_meta)


def read_meta(path: Path) -> Meta:
    """Configuration, step and metrics of a checkpoint file; its tensors stay on the disk."""
    return Meta.from_dict(_checked(torch_pickle.load(path), path), origin=str(path))


def read(path: Path) -> dict[str, Any]:
    """The whole content, tensors on the CPU and mapped from the file where the system can.

    Raises:
        CheckpointError: not such a file, or damaged.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except _UNREADABLE as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path} cannot be read ({reason}); it is damaged or no checkpoint") from error
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


def on_cpu(value: Any) -> Any:
    """Nested dictionaries with every tensor in host memory; a tensor that is there already is not copied."""
    if isinstance(value, dict):
        return {key: on_cpu(item) for key, item in value.items()}
    return value.detach().cpu() if isinstance(value, Tensor) else value


def _checked(content: Any, path: Path) -> dict[str, Any]:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = ", ".join(map(str, list(content)[:6])) if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(
            f"{path} is not a checkpoint of voken_torch (found: {found}); published checkpoints become one by "
            "`voken-convert SRC DST.pt`"
        )
    return content
