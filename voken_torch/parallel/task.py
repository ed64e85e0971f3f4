"""Interface between the training loop and one kind of run; tokenizers and generators each have their own task."""

from __future__ import annotations

import abc
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from voken_common.config.loading import AnyConfig
from voken_common.training.log import RunLog
from voken_torch.device.runtime import Runtime
from voken_torch.parallel.sharding import process_index

logger = logging.getLogger("voken")

Metrics = dict[str, Float[Tensor, ""]]


class Task(abc.ABC):
    """Everything of a run that is built once, on this process's device.

    Attributes:
        config: the run.
        runtime: this process's device.
        seen_codes: which codes the steps have used; None: no codebook is trained.
        total_steps: length of the run.
        state: a fresh one until a checkpoint is loaded into it.
        shown: training metrics that the progress bar shows.
        rates: what one image counts for in further logged rates, by name.
    """

    config: AnyConfig
    runtime: Runtime
    seen_codes: Any = None
    total_steps: int
    state: Any
    shown: tuple[str, ...]
    rates: Mapping[str, float]

    @abc.abstractmethod
    def step(self, batch: dict[str, np.ndarray]) -> Metrics:
        """One optimizer step on this process's share of a batch, as its iterator gives it; metrics stay on the device.

        Raises:
            NonFiniteError: a term was not finite; the state is as before.
        """

    @abc.abstractmethod
    def logged(self, means: dict[str, float], number: int) -> dict[str, float]:
        """Return the metrics to log after step `number` (from 1): the means since the last time, and schedules."""

    @abc.abstractmethod
    def validate(self, log: RunLog, number: int) -> dict[str, float]:
        """Metrics on held-out data after the `number`-th step; pictures go to the log. All processes call it."""

    @property
    @abc.abstractmethod
    def validates(self) -> bool:
        """True if there is anything to validate on."""


def tell(message: str, *values: object) -> None:
    """A line of the first process's log."""
    if process_index() == 0:
        logger.info(message, *values)


def size_of(weights: Mapping[str, Tensor]) -> int:
    """Numbers in a dictionary of tensors, split ones counted whole."""
    return sum(weight.numel() for weight in weights.values())
