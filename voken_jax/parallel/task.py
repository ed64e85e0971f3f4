"""Interface between the training loop and one kind of run; tokenizers and generators each have their own task."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from voken_common.config.loading import AnyConfig
from voken_common.training.log import RunLog

Metrics = dict[str, Float[Array, ""]]


class Task(abc.ABC):
    """Everything of a run that is built once: networks, optimizer, programs.

    A state is a pytree with at least `step`, the optimizer steps taken, and `failure`: 0, or a bit per metric (by
    sorted name) that was not finite, after which the state stays as it was before the failing step.

    Attributes:
        config: the run.
        mesh: axes (data, fsdp, model).
        codes: size of the codebook that is trained; None: there is none.
        total_steps: length of the run.
        abstract: shapes, dtypes and shardings of the state on disk, as ShapeDtypeStructs.
        shown: training metrics that the progress bar shows.
        rates: what one image counts for in further logged rates, by name.
    """

    config: AnyConfig
    mesh: Mesh
    codes: int | None = None
    total_steps: int
    abstract: Any
    shown: tuple[str, ...]
    rates: Mapping[str, float]

    @abc.abstractmethod
    def create(self) -> Any:
        """A fresh state, born sharded."""

    def to_disk(self, state: Any) -> Any:
        """The state as checkpoints hold it: every weight by its name."""
        return state

    def from_disk(self, state: Any) -> Any:
        """Inverse of `to_disk`."""
        return state

    @abc.abstractmethod
    def place(self, batch: dict[str, np.ndarray]) -> Any:
        """The global batch on the devices, from this process's share as its iterator gives it."""

    @abc.abstractmethod
    def step(self, state: Any, batch: Any) -> tuple[Any, Metrics, Array | None]:
        """One optimizer step; the state passed in is consumed, and metrics stay on the device.

        The third value are the ids of the codes that the batch became, (micro-batches, samples, ...), or None.
        """

    @abc.abstractmethod
    def logged(self, means: dict[str, float], number: int) -> dict[str, float]:
        """Return the metrics to log after step `number` (from 1): the means since the last time, and schedules."""

    @abc.abstractmethod
    def validate(self, state: Any, log: RunLog, number: int) -> dict[str, float]:
        """Metrics on held-out data after the `number`-th step; pictures go to the log."""

    @property
    @abc.abstractmethod
    def validates(self) -> bool:
        """True if there is anything to validate on."""


def size_of(weights: Mapping[str, Any]) -> int:
    """Numbers in a dictionary of arrays or of their shapes."""
    return sum(int(np.prod(w.shape)) for w in weights.values())


def shardings_of(abstract: Any) -> Any:
    """The shardings of a pytree of ShapeDtypeStructs."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)
