"""Checkpoints that explain themselves: weights, optimizer state, data position and configuration of one step, together.

A step is a folder of named items, so that a reader takes only what it needs: `generator_ema` and `generator` (flat
dictionaries of weights; a state without averages has no such item), `rest` (everything else of the state), `data` (the
iterator) and `meta` (configuration, step, metrics). A step for inference has `meta` and at least one of the two sets of
weights. Orbax writes a step under a temporary name and renames it when it is whole and has its checksums; a step that
does not have the bytes that were written is never used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec

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
from voken_common.untrusted.files import read_bytes
from voken_common.untrusted.json_text import loads
from voken_jax.checkpoints.checksums import needed_items, step_path, step_problems, visible_problems
from voken_jax.checkpoints.orbax_messages import hush
from voken_jax.parallel.distributed import processes

AnyCheckpointConfig = CheckpointConfig | GeneratorCheckpointConfig
State = Any
"""A training state: a dataclass with at least `step`, `generator` and `generator_ema`, the latter two dictionaries of
weights by name. Where it has `lecam`, that is a named tuple of averages, one entry per statistics scope."""

DATA_FILE = Path("data", "process_0-of-1.json")
"""Grain's file of the iterator's state, inside a step; processes of a larger run write one each, all the same."""

_GONE_SECONDS, _REMOVAL_SECONDS = 0.5, 30.0
"""For how long a half-written step must stay away to count as removed, and for how long that is tried."""


class Checkpoints:
    """The steps kept in one work directory.

    Args:
        workdir: its `checkpoints` folder is used.
        config: how many to keep, and by which metric the best are chosen.
    """

    def __init__(self, workdir: str | Path, config: AnyCheckpointConfig):
        self._folder = Path(workdir).absolute() / FOLDER
        files = StepFiles(steps_in, read_meta, visible_problems, step_problems)
        self._steps = RunSteps(self._folder, config, files, processes())
        hush()
        options = ocp.CheckpointManagerOptions(
            # On the CPU arrays are not copied before the next step's donation may overwrite them.
            enable_async_checkpointing=jax.default_backend() != "cpu",
            # Without a policy of its own Orbax keeps every step: it would drop old ones before the new one is verified.
            temporary_path_class=step_path(config.checksums, self._steps.drop_old),
            # Neither a clock that went backwards nor a damaged step may matter.
            lightweight_initialize=True,
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def latest_step(self) -> int | None:
        """Return the newest step on disk that is not damaged, or None; damaged ones after it are reported.

        Raises:
            DamagedError: there are steps, and all are damaged.
        """
        return self._steps.latest()

    def recover(self) -> int | None:
        """`latest_step`, for the run that holds the directory: half-written and damaged steps leave its way."""
        latest = self._steps.recover()
        self._manager.reload()
        return latest

    def save(
        self,
        state: State,
        config: AnyConfig,
        iterator: grain.DatasetIterator,
        metrics: dict[str, float],
        progress: Progress | None = None,
    ) -> None:
        """Write the current step, then drop what need not be kept. Returns when the state may be donated.

        Raises:
            CheckpointError: it cannot be written; the steps before are as they were.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        items = ocp.args.Composite(
            **{name: ocp.args.StandardSave(item) for name, item in _items(state).items()},
            data=grain.checkpoint.CheckpointSave(iterator),
            meta=ocp.args.JsonSave(Meta(config, step, metrics, progress or Progress()).to_dict()),
        )
        with self._telling(step):
            self._manager.save(step, args=items)
        self._steps.changed()

    def restore(self, abstract: State, iterator: grain.DatasetIterator) -> State:
        """The newest step, onto the shapes and shardings of `abstract`; the iterator is moved to its position.

        Numbers of devices and processes may differ from those of the run that saved it; LeCAM averages of another
        number of devices become their mean. Averages of weights that the step has none of start at the weights.

        Args:
            abstract: the state as ShapeDtypeStructs.
            iterator: the training data.

        Returns:
            A state of the same kind.

        Raises:
            CheckpointError: the step is one for inference, or cannot be read.
            DataError: the data or the seed are not the ones of the step.
        """
        step = self.latest_step()
        folder, items = self._folder / str(step), _items(abstract)
        data = read_data(folder)
        if not (folder / "rest").is_dir() or data is None:
            raise CheckpointError(
                f"{folder} holds weights for inference and no training state, so training cannot continue from it; "
                "use another --workdir"
            )
        lecam: Any = getattr(abstract, "lecam", None)
        entries = None if lecam is None else _lecam_entries(folder)
        fits = lecam is None or lecam[0].shape == (entries,)
        if not fits:
            everywhere = NamedSharding(lecam[0].sharding.mesh, PartitionSpec())
            saved: Any = jax.ShapeDtypeStruct((entries,), lecam[0].dtype, sharding=everywhere)
            items["rest"]["lecam"] = jax.tree.map(lambda _: saved, lecam)
        begins = "generator_ema" in items and not (folder / "generator_ema").is_dir()
        if begins:
            del items["generator_ema"]
        arguments = {name: ocp.args.StandardRestore(item) for name, item in items.items()}
        with readable(folder):
            restored = dict(self._manager.restore(step, args=ocp.args.Composite(**arguments)).items())
        iterator.set_state(data)
        iterator.start_prefetch()
        state = type(abstract)(**{"generator_ema": {}, **restored.pop("rest"), **restored})
        if begins:
            state = dataclasses.replace(state, generator_ema=jax.tree.map(jnp.copy, state.generator))
        if not fits:
            shape, where = lecam[0].shape, lecam[0].sharding
            spread = jax.jit(lambda values: jnp.broadcast_to(values.mean(), shape), out_shardings=where)
            state = dataclasses.replace(state, lecam=jax.tree.map(spread, state.lecam))
        return state

    def meta(self, step: int) -> Meta:
        """Read the description of a step on disk."""
        return read_meta(self._folder / str(step))

    def close(self) -> None:
        """Wait for writes under way.

        Raises:
            CheckpointError: the last one failed.
        """
        with self._telling(max(self._manager.all_steps(), default=0)):
            self._manager.wait_until_finished()
        self._manager.close()

    def _remove_partial(self, step: int) -> None:
        """Remove what there is of a step.

        Other threads of the write that failed may still add to it: it must be gone for a moment before that counts.
        """
        gone_since, begun = None, time.monotonic()
        while time.monotonic() - begun < _REMOVAL_SECONDS:
            partial = list(self._folder.glob(f"{step}.orbax-checkpoint-tmp*"))
            for folder in partial:
                shutil.rmtree(folder, ignore_errors=True)
            now = time.monotonic()
            gone_since = None if partial else gone_since or now
            if gone_since is not None and now - gone_since > _GONE_SECONDS:
                return
            time.sleep(0.1)

    @contextlib.contextmanager
    def _telling(self, step: int) -> Iterator[None]:
        """Say what failed in words of this program, and leave nothing half-written behind."""
        try:
            yield
        # A full disk reaches us as whatever the library that met it raises.
        except Exception as error:
            if jax.process_index() == 0:
                self._remove_partial(step)
            intact = sorted(number for number in steps_in(self._folder) if number != step)
            raise failed_write(step, self._folder, error, intact) from error


def steps_in(folder: Path) -> dict[int, Path]:
    """Number -> folder of all steps that have their final name."""
    return {int(path.name): path for path in folder.glob("*") if path.name.isdecimal() and path.is_dir()}


def find_step(
    checkpoint: str | Path, step: Step = "latest", *, weights: Weights | None = None, verify: bool | None = None
) -> Path:
    """The folder of one step; damaged ones are passed over with a warning.

    Args:
        checkpoint: a work directory, its `checkpoints` folder, or the folder of one step.
        step: a number, `latest`, or `best` by the run's own metric.
        weights: which set the caller is going to read, see `load_generator`.
        verify: True verifies checksums of all a step holds, None of what a reader of weights needs, False of nothing.

    Raises:
        CheckpointError: nothing there, or not that step.
        DamagedError: it is damaged, and asked for by number or as a folder, or there is no good one.
    """

    def problems(folder: Path) -> list[str]:
        if verify is False:
            return []
        return step_problems(folder, None if verify else needed_items(folder, weights))

    path = Path(checkpoint)
    if (path / "meta").is_dir():
        require_good(path, problems(path), [])
        return path
    root = path / FOLDER if (path / FOLDER).is_dir() else path
    steps = steps_in(root)
    if not any((step / "meta").is_dir() for step in steps.values()):
        raise CheckpointError(describe_missing(path, "python -m voken_jax.train", "<step>/meta"))
    return choose_step(steps, step, read_meta, problems)


def read_meta(step_folder: Path) -> Meta:
    """Configuration, step and metrics of a step folder."""
    file = step_folder / "meta" / "metadata"
    try:
        values = loads(read_bytes(file), non_finite=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}); the step is damaged, use another one") from error
    return Meta.from_dict(values, origin=str(file))


def read_data(step_folder: Path) -> dict[str, Any] | None:
    """Position in the data that a step was saved at; the same in the file of every process. None: for inference."""
    files = sorted((step_folder / DATA_FILE).parent.glob("process_*.json"))
    try:
        return loads(read_bytes(files[0]), non_finite=True) if files else None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{files[0]} cannot be read ({error}); the step is damaged, use another one") from error


def load_generator(step_folder: Path, abstract: dict[str, Any], weights: Weights | None = None) -> dict[str, jax.Array]:
    """Read the generator's weights of a step folder, and nothing else.

    Args:
        step_folder: as `find_step` gives it.
        abstract: name -> ShapeDtypeStruct of what the network needs; more or less on disk is an error.
        weights: `ema` (averages) or `raw`; None: averages if there are any.

    Returns:
        name -> array, all on one device: without a place to go to, Orbax asks for the very devices of the run.

    Raises:
        CheckpointError: that set is not there, or cannot be read.
    """
    there: list[Weights] = [kind for kind, item in ITEMS.items() if (step_folder / item).is_dir()]
    chosen: Weights = weights or (there[0] if there else "ema")
    if chosen not in there:
        raise CheckpointError(f"{step_folder} holds no {ITEMS[chosen]}; it has {' and '.join(there) or 'no weights'}")
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    placed = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here) for name, leaf in abstract.items()}
    folder = step_folder.absolute() / ITEMS[chosen]
    with readable(folder), ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder, placed)


@contextlib.contextmanager
def readable(folder: Path) -> Iterator[None]:
    """Turn the errors of Orbax while a step is read into one that names the step or item.

    Raises:
        CheckpointError: in place of any other error.
        JaxRuntimeError: of a device.
    """
    hush()
    try:
        yield
    # The latter are trouble of the devices, such as memory that does not suffice.
    except (CheckpointError, jax.errors.JaxRuntimeError):
        raise
    # For damaged files Orbax raises all kinds, bare Exception among them, so nothing narrower catches them.
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{folder} cannot be read ({type(error).__name__}: {reason}); it is damaged, or not of this model: use "
            "another step"
        ) from error


def _lecam_entries(step_folder: Path) -> int:
    handler = ocp.PyTreeCheckpointHandler()
    try:
        with readable(step_folder / "rest"):
            return handler.metadata(step_folder.absolute() / "rest").tree["lecam"]["real"].shape[0]
    finally:
        handler.close()


def _items(state: State) -> dict[str, Any]:
    """The parts of a state that are items of their own, and the rest; averages only where there are any."""
    rest = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    weights = {name: rest.pop(name) for name in ("generator", "generator_ema")}
    return {**{name: item for name, item in weights.items() if item}, "rest": rest}
