"""`metrics.jsonl`: what a run logs as lines of JSON, for whoever wants numbers without TensorBoard."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from voken_common.atomic_write import replacing

logger = logging.getLogger("voken")

NAME = "metrics.jsonl"


class MetricsFile:
    """Appends a line per logged step: `{"step": 10, "train/total_loss": 0.5, ...}`; what is not finite is null.

    A run that continues at a step drops the lines after it, which it will write again. Where the disk does not take
    lines any more that is said once, and the run goes on.

    Args:
        workdir: of the run.
        first_step: where the run begins or continues.
    """

    def __init__(self, workdir: Path, first_step: int):
        self._path = workdir / NAME
        self._file: IO[str] | None = None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._drop_after(first_step)
            self._file = self._path.open("a", encoding="utf-8")
        except OSError as error:
            self._give_up(error)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line, on the disk when this returns."""
        if self._file is None:
            return
        finite = {name: float(v) if math.isfinite(v) else None for name, v in values.items()}
        try:
            self._file.write(json.dumps({"step": step, **finite}, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            try:
                self._file.close()
            except OSError as error:
                self._give_up(error)
        self._file = None

    def _drop_after(self, step: int) -> None:
        if not self._path.is_file():
            return
        lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and _step_of(line) <= step]
        if len(kept) < len(lines):
            with replacing(self._path) as file:
                file.write("".join(kept).encode())

    def _give_up(self, error: OSError) -> None:
        self._file = None
        logger.warning("%s cannot be written (%s): the run goes on without it", self._path, error.strerror or error)


def _step_of(line: str) -> float:
    """The step of a line; infinite for one that is damaged, as the last of a killed run may be."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
