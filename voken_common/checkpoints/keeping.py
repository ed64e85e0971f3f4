"""Steps of a work directory: find the newest good one, set damaged ones aside, drop old ones.

All processes of a run go by what the first one finds on the disk. Before a step is dropped, one that stays has been
read again and found to be what was written.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from voken_common.checkpoints.checksums import forget_cached
from voken_common.checkpoints.steps import (
    Meta,
    Problems,
    kept_steps,
    listed,
    newest_good,
    remove_half_written,
    set_aside,
)
from voken_common.config.schema.generator import GeneratorCheckpointConfig
from voken_common.config.schema.run import CheckpointConfig
from voken_common.errors import CheckpointError
from voken_common.processes import Processes

logger = logging.getLogger("voken")

_DROPPED = ".dropped.part"
"""End of the name of a folder that is being removed; `remove_half_written` knows it by its last part."""

Result = TypeVar("Result")


class StepFiles(NamedTuple):
    """Functions by which a framework finds and reads its steps.

    Attributes:
        steps_in: number -> place of the steps in a folder.
        read_meta: what a place says about itself; OSError or ValueError where it cannot be read.
        visible: what is wrong with a place as far as one sees without reading its data, one line each.
        problems: what is wrong with it, all of it read.
    """

    steps_in: Callable[[Path], dict[int, Path]]
    read_meta: Callable[[Path], Meta]
    visible: Problems
    problems: Problems


class RunSteps:
    """The steps of one work directory while a run holds it.

    Args:
        folder: where they lie.
        config: how many to keep, by which metric the best are chosen, and whether checksums are verified.
        files: how to read them.
        processes: those of the run.
    """

    def __init__(
        self,
        folder: Path,
        config: CheckpointConfig | GeneratorCheckpointConfig,
        files: StepFiles,
        processes: Processes,
    ):
        self._folder, self._config, self._files = folder, config, files
        self._first, self._gather = processes.first, processes.gather
        self._found: tuple[int | None, list[int]] | None = None
        self._damaged: set[int] = set()

    def latest(self) -> int | None:
        """Return the newest good step on disk, or None; damaged ones after it are reported. All processes call it.

        Raises:
            DamagedError: there are steps, and all are damaged.
        """
        if self._found is None:
            self._found = self.by_first(self._look)
        return self._found[0]

    def recover(self) -> int | None:
        """`latest`, for the run that holds the directory: half-written and damaged steps leave its way."""
        latest = self.latest()
        self.by_first(self._clear)
        self._found = (latest, [])
        return latest

    def changed(self) -> None:
        """A step was written, so that `latest` looks again."""
        self._found = None

    def by_first(self, function: Callable[[], Result]) -> Result:
        """Run a function on the first process, and return its result, or raise its error, on all of them. All call it.

        Raises:
            CheckpointError: the same on all processes; other errors are raised as they are by the first, and told to
                the others in this form.
        """
        value: Any = None
        failure: Exception | None = None
        if self._first:
            try:
                value = function()
            # Whatever it is, the others must not wait for a process that is gone.
            except Exception as error:
                failure = error
        told = failure
        if failure is not None and not isinstance(failure, CheckpointError):
            told = CheckpointError(f"process 0 failed ({type(failure).__name__}: {failure})")
        others = self._gather((value, told))
        if failure is not None:
            raise failure
        if not self._first:
            value, told = others[0]
            if told is not None:
                raise told
        result: Result = value
        return result

    def drop_old(self) -> None:
        """Remove the steps that need not be kept. Only the first process does anything: no other needs to know."""
        if not self._first:
            return
        places = self._files.steps_in(self._folder)
        # What could not be removed whole before is tried again.
        begun = sorted(path for path in self._folder.glob(f"*{_DROPPED}") if path.name.partition(".")[0].isdecimal())
        for place in begun + [places[step] for step in self._droppable(places)]:
            # One that stays must not keep the others.
            try:
                _remove(place)
            except OSError as error:
                logger.warning(
                    "an old step could not be removed from %s: %s (%s); the run goes on",
                    self._folder,
                    place.name,
                    error,
                )

    def _droppable(self, places: dict[int, Path]) -> list[int]:
        """List the steps that need not be kept, once the newest kept one is known to be good.

        Damaged steps do not count as kept, now or later, so that as many good ones stay in their place. Those that are
        visibly damaged stay too; those that were found to be when they were read go when `keep_last` good ones are
        newer.
        """
        metrics: dict[int, dict[str, float]] = {}
        for step, place in places.items():
            with contextlib.suppress(OSError, ValueError):
                if not self._files.visible(place):
                    metrics[step] = self._files.read_meta(place).metrics
        self._damaged &= places.keys()
        while True:
            good = {step: values for step, values in metrics.items() if step not in self._damaged}
            last = sorted(good)[-self._config.keep_last :]
            stale = set(good) - kept_steps(good, self._config)
            if len(last) == self._config.keep_last:
                stale |= {step for step in self._damaged & metrics.keys() if step < last[0]}
            if not stale:
                return []
            found = self._verified(places[last[-1]])
            if not found:
                return sorted(stale)
            logger.warning(
                "step %d is damaged: %s. It does not count as kept, so older steps stay. If this happens again, look "
                "at the disk and the memory of this machine",
                last[-1],
                listed(found),
            )
            self._damaged.add(last[-1])

    def _verified(self, place: Path) -> list[str]:
        """List the faults of a step on the disk; empty if checksums are switched off."""
        if not self._config.checksums:
            return []
        try:
            forget_cached(place)
            return self._files.problems(place)
        # The copy in memory may be good all the same: to read that would prove nothing.
        except OSError as error:
            return [f"it could not be brought to the disk and read from there ({error})"]

    def _look(self) -> tuple[int | None, list[int]]:
        """(newest good step, damaged ones after it)."""
        steps = self._files.steps_in(self._folder)
        if not steps:
            return None, []
        return newest_good(steps, self._files.problems if self._config.checksums else lambda _: [])

    def _clear(self) -> None:
        assert self._found is not None
        if self._folder.is_symlink():
            raise CheckpointError(
                f"{self._folder} is a link, and a run would write and delete where it leads: name the work directory "
                "that is meant with --workdir"
            )
        remove_half_written(self._folder)
        places = self._files.steps_in(self._folder)
        set_aside(self._folder.parent, [places[step] for step in self._found[1]])


def _remove(place: Path) -> None:
    """Remove a step, or what an earlier removal left of one.

    A run that is killed meanwhile leaves no part of it under its name.
    """
    if not place.is_dir() or place.is_symlink():
        place.unlink()
        return
    gone = place
    if not place.name.endswith(_DROPPED):
        gone = place.with_name(f"{place.name}{_DROPPED}")
        os.replace(place, gone)
    shutil.rmtree(gone)
