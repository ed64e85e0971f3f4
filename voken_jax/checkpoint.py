"""Checkpoints that explain themselves: weights, optimizer state, data position and configuration of one step, together.

A step is a folder of named items, so that a reader takes only what it needs: `generator_ema` and `generator` (flat
dictionaries of weights; a state without averages has no such item), `rest` (everything else of the state), `data` (the
iterator) and `meta` (configuration, step, metrics). A step for inference has `meta` and at least one of the two sets of
weights. Orbax writes a step under a temporary name and renames it when it is whole.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import checkpoint_managers

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
from voken_common.config import AnyConfig
from voken_common.errors import CheckpointError
from voken_common.generator_schema import GeneratorCheckpointConfig
from voken_common.schema import CheckpointConfig
from voken_jax.generator_step import GeneratorState
from voken_jax.losses import LecamAverages
from voken_jax.state import TrainState

AnyState = TrainState | GeneratorState
AnyCheckpointConfig = CheckpointConfig | GeneratorCheckpointConfig

DATA_FILE = Path("data", "process_0-of-1.json")
"""Grain's file of the iterator's state, inside a step; processes of a larger run write one each, all the same."""


class Checkpoints:
    """The steps kept in one work directory.

    Args:
        workdir: its `checkpoints` folder is used.
        config: how many to keep, and by which metric the best are chosen.
    """

    def __init__(self, workdir: str | Path, config: AnyCheckpointConfig):
        folder = Path(workdir).absolute() / FOLDER
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_LastAndBest(folder, config),
            # On the CPU arrays are not copied before the next step's donation may overwrite them.
            enable_async_checkpointing=jax.default_backend() != "cpu",
        )
        self._manager = ocp.CheckpointManager(folder, options=options)

    def latest_step(self) -> int | None:
        """The newest step on disk, or None."""
        return self._manager.latest_step()

    def save(
        self, state: AnyState, config: AnyConfig, iterator: grain.DatasetIterator, metrics: dict[str, float]
    ) -> None:
        """Write the current step, then drop what need not be kept. Returns when the state may be donated."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        items = ocp.args.Composite(
            **{name: ocp.args.StandardSave(item) for name, item in _items(state).items()},
            data=grain.checkpoint.CheckpointSave(iterator),
            meta=ocp.args.JsonSave(Meta(config, step, metrics).to_dict()),
        )
        self._manager.save(step, args=items, metrics=metrics)

    def restore(self, abstract: Any, iterator: grain.DatasetIterator) -> Any:
        """The newest step, onto the shapes and shardings of `abstract`; the iterator is moved to its position.

        Numbers of devices and processes may differ from those of the run that saved it; LeCAM averages of another
        number of devices become their mean.

        Args:
            abstract: a TrainState or GeneratorState of ShapeDtypeStructs.
            iterator: the training data.

        Returns:
            A state of the same kind.

        Raises:
            CheckpointError: the step is one for inference.
            DataError: the data or the seed are not the ones of the step.
        """
        step = self._manager.latest_step()
        folder, items = Path(self._manager.directory) / str(step), _items(abstract)
        data = read_data(folder)
        if not (folder / "rest").is_dir() or data is None:
            raise CheckpointError(
                f"{folder} holds weights for inference and no training state, so training cannot continue from it; "
                "use another --workdir"
            )
        own: Any = abstract.lecam.real if isinstance(abstract, TrainState) else None
        entries = None if own is None else _lecam_entries(folder)
        fits = own is None or own.shape == (entries,)
        if not fits:
            everywhere = NamedSharding(own.sharding.mesh, PartitionSpec())
            saved: Any = jax.ShapeDtypeStruct((entries,), own.dtype, sharding=everywhere)
            items["rest"]["lecam"] = LecamAverages(saved, saved)
        arguments = {name: ocp.args.StandardRestore(item) for name, item in items.items()}
        restored = dict(self._manager.restore(step, args=ocp.args.Composite(**arguments)).items())
        iterator.set_state(data)
        iterator.start_prefetch()
        state = type(abstract)(**{"generator_ema": {}, **restored.pop("rest"), **restored})
        if not fits:
            spread = jax.jit(lambda values: jnp.broadcast_to(values.mean(), own.shape), out_shardings=own.sharding)
            state = state.replace(lecam=jax.tree.map(spread, state.lecam))
        return state

    def meta(self, step: int) -> Meta:
        """What a step on disk says about itself."""
        return read_meta(Path(self._manager.directory) / str(step))

    def close(self) -> None:
        """Wait for writes under way."""
        self._manager.wait_until_finished()
        self._manager.close()


class _LastAndBest(checkpoint_managers.preservation_policy.PreservationPolicy):
    """Which steps stay, by what each step on disk says: a manager knows only the metrics of its own run."""

    def __init__(self, folder: Path, config: AnyCheckpointConfig):
        self._folder, self._config = folder, config

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """A flag per step."""
        kept = kept_steps({info.step: info.metrics or self._saved(info.step) for info in checkpoints}, self._config)
        return [info.step in kept for info in checkpoints]

    def _saved(self, step: int) -> dict[str, float]:
        folder = self._folder / str(step)
        return read_meta(folder).metrics if (folder / "meta").is_dir() else {}


def find_step(checkpoint: str | Path, step: Step = "latest") -> Path:
    """The folder of one step.

    Args:
        checkpoint: a work directory, its `checkpoints` folder, or the folder of one step.
        step: a number, `latest`, or `best` by the run's own metric.

    Raises:
        CheckpointError: nothing there, or not that step.
    """
    path = Path(checkpoint)
    if (path / "meta").is_dir():
        return path
    root = path / FOLDER if (path / FOLDER).is_dir() else path
    steps = {int(p.name): p for p in root.glob("*") if p.name.isdecimal() and (p / "meta").is_dir()}
    if not steps:
        raise CheckpointError(describe_missing(path, "python -m voken_jax.train", "<step>/meta"))
    return choose_step(steps, step, read_meta)


def read_meta(step_folder: Path) -> Meta:
    """Configuration, step and metrics of a step folder."""
    file = step_folder / "meta" / "metadata"
    try:
        values = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}); the step is damaged, use another one") from error
    return Meta.from_dict(values, origin=str(file))


def read_data(step_folder: Path) -> dict[str, Any] | None:
    """Position in the data that a step was saved at; the same in the file of every process. None: for inference."""
    files = sorted((step_folder / DATA_FILE).parent.glob("process_*.json"))
    try:
        return json.loads(files[0].read_text()) if files else None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{files[0]} cannot be read ({error}); the step is damaged, use another one") from error


def load_generator(step_folder: Path, abstract: dict[str, Any], weights: Weights | None = None) -> dict[str, jax.Array]:
    """The generator's weights of a step folder, and nothing else of it.

    Args:
        step_folder: as `find_step` gives it.
        abstract: name -> ShapeDtypeStruct of what the network needs; more or less on disk is an error.
        weights: `ema` (averages) or `raw`; None: averages if there are any.

    Returns:
        name -> array, all on one device: without a place to go to, Orbax asks for the very devices of the run.

    Raises:
        CheckpointError: that set is not there.
    """
    there: list[Weights] = [kind for kind, item in ITEMS.items() if (step_folder / item).is_dir()]
    chosen: Weights = weights or (there[0] if there else "ema")
    if chosen not in there:
        raise CheckpointError(f"{step_folder} holds no {ITEMS[chosen]}; it has {' and '.join(there) or 'no weights'}")
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    placed = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here) for name, leaf in abstract.items()}
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(step_folder.absolute() / ITEMS[chosen], placed)


def _lecam_entries(step_folder: Path) -> int:
    handler = ocp.PyTreeCheckpointHandler()
    try:
        return handler.metadata(step_folder.absolute() / "rest").tree["lecam"]["real"].shape[0]
    finally:
        handler.close()


def _items(state: AnyState) -> dict[str, Any]:
    """The parts of a state that are items of their own, and the rest; averages only where there are any."""
    rest = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    weights = {name: rest.pop(name) for name in ("generator", "generator_ema")}
    return {**{name: item for name, item in weights.items() if item}, "rest": rest}
