"""The kind of run that the training loop drives; tokenizers and generators each have a task in each framework."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any

import numpy as np

from voken_common.config.loading import AnyConfig
from voken_common.training.log import RunLog


class Task(abc.ABC):
    """A run's networks, optimizer and programs, built once, and its training state.

    Attributes:
        config: the run.
        state: everything that changes between two steps, with at least `step`, the optimizer steps taken.
        total_steps: length of the run.
        shown: training metrics that the progress bar shows.
        rates: further logged rates by name, and what one image counts for in each.
    """

    config: AnyConfig
    state: Any
    total_steps: int
    shown: tuple[str, ...]
    rates: Mapping[str, float]

    @abc.abstractmethod
    def begin(self) -> None:
        """Start from a fresh state."""

    @abc.abstractmethod
    def on_disk(self) -> Any:
        """The state as checkpoints write it."""

    @abc.abstractmethod
    def target(self) -> Any:
        """The state, or its shapes, that a checkpoint is restored onto."""

    @abc.abstractmethod
    def resume(self, restored: Any) -> None:
        """Continue from what a checkpoint was restored to."""

    @abc.abstractmethod
    def step(self, batch: Mapping[str, np.ndarray]) -> Any:
        """Make one optimizer step on this process's share of a batch; its metrics stay on the device."""

    @abc.abstractmethod
    def metrics_of(self, batch: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Make one step and return its metrics; where it is refused, at least those that are not finite."""

    @abc.abstractmethod
    def logged(self, means: dict[str, float], number: int) -> dict[str, float]:
        """Add what follows schedules after the `number`-th step (from 1) to the metrics' means since the last time."""

    @abc.abstractmethod
    def validate(self, log: RunLog, number: int) -> dict[str, float]:
        """Return metrics on held-out data after the `number`-th step; pictures go to the log. All processes call it."""

    @property
    @abc.abstractmethod
    def validates(self) -> bool:
        """True if there is anything to validate on."""
