"""The part of a task that both kinds of run share in PyTorch: a state that changes in place, and refused steps."""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from voken_common.errors import NonFiniteError
from voken_common.training.task import Task
from voken_torch.optimization.finite import Metrics


class InPlaceTask(Task):
    """A task whose steps change its `state` in place, so that a run starts from it and checkpoints read into it."""

    state: Any

    def begin(self) -> None:
        """Start from the state as it was built."""

    def on_disk(self) -> Any:
        """Return the state itself."""
        return self.state

    def target(self) -> Any:
        """Return the state, which a checkpoint is read into."""
        return self.state

    def resume(self, restored: Any) -> None:
        """Continue from a restored state."""
        self.state = restored

    @abc.abstractmethod
    def step(self, batch: Mapping[str, np.ndarray]) -> Metrics:
        """Make one optimizer step and return its metrics, which stay on the device.

        Raises:
            NonFiniteError: a metric was not finite; the state is as before.
        """

    def metrics_of(self, batch: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Make one step and return its metrics; where it is refused, NaN for each that is not finite."""
        try:
            return {name: float(value) for name, value in self.step(batch).items()}
        except NonFiniteError as error:
            return dict.fromkeys(error.terms, math.nan)
