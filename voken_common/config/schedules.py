"""Factors over steps for learning rate and weight decay, shared by both frameworks.

Steps are 0-based. The functions compute with the array module they are given (`numpy`, `jax.numpy`), so that one
formula serves a Python loop and a traced program.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from voken_common.config.schema.generator import GeneratorConfig, GeneratorOptimizerConfig
from voken_common.config.schema.tokenizer import Config


@dataclass(frozen=True)
class Schedule:
    """A learning-rate factor as a function of the step.

    Attributes:
        kind: constant, linear, cos, linear-warmup or linear-warmup_cosine-decay.
        warmup: steps of linear warm-up.
        total: steps of the whole run.
        start_factor: factor at step 0 where there is a warm-up.
        end_factor: factor at the end (linear, cos), or the smallest factor (linear-warmup_cosine-decay).
        drops: first steps at which the factor is multiplied by `drop_factor`, once each.
    """

    kind: str
    warmup: int
    total: int
    start_factor: float
    end_factor: float
    drops: tuple[int, ...] = ()
    drop_factor: float = 0.1

    def __call__(self, step: Any, xp: ModuleType = np) -> Any:
        """The factor at `step` (a number or an array of `xp`)."""
        it = xp.asarray(step, float)
        factor = self._body(it, xp)
        if self.warmup > 0:
            start = 0.0 if self.kind.startswith("linear-warmup") else self.start_factor
            factor = xp.where(it < self.warmup, start + (1.0 - start) * it / self.warmup, factor)
        for first in self.drops:
            factor = factor * xp.where(it >= first, self.drop_factor, 1.0)
        return factor

    def _body(self, it: Any, xp: ModuleType) -> Any:
        end = self.end_factor
        progress = (it - self.warmup) / max(self.total - 1 - self.warmup, 1)
        if self.kind == "linear":
            return xp.where(progress < 0.05, 1.0, end + (1.0 - end) * (1.0 - progress) / 0.95)
        if self.kind == "cos":
            return end + (1.0 - end) * (0.5 + 0.5 * xp.cos(np.pi * progress))
        if self.kind == "linear-warmup_cosine-decay":
            fraction = (it - self.warmup) / max(self.total - self.warmup, 1)
            return xp.maximum(0.5 * (1.0 + xp.cos(np.pi * fraction)), end)
        return xp.ones_like(it)


def steps_per_epoch(config: Config | GeneratorConfig, samples: int) -> int:
    """Optimizer steps of one pass over so many samples; an incomplete last batch counts."""
    return -(-samples // config.training.batch_size)


def total_steps(config: Config | GeneratorConfig, per_epoch: int) -> int:
    """Length of a run in optimizer steps."""
    return config.training.steps or (config.training.epochs or 0) * per_epoch


def build_schedule(config: Config | GeneratorConfig, steps_per_epoch: int, total_steps: int) -> Schedule:
    """The schedule a configuration describes; epochs become steps here and nowhere else."""
    schedule = config.optimizer.schedule
    warmup = schedule.warmup_steps or 0
    if schedule.warmup_epochs is not None:
        warmup = round(schedule.warmup_epochs * steps_per_epoch)
    by_epoch = [epoch * steps_per_epoch for epoch in schedule.drop_epochs]
    by_step = [step - 1 for step in schedule.drop_steps]
    return Schedule(
        kind=schedule.kind,
        warmup=warmup,
        total=total_steps,
        start_factor=schedule.start_factor,
        end_factor=schedule.end_factor,
        drops=tuple(sorted(by_epoch + by_step)),
        drop_factor=schedule.drop_factor,
    )


def cosine_weight_decay(step: Any, start: float, end: float, total: int, xp: ModuleType = np) -> Any:
    """Weight decay moving from `start` to `end` along half a cosine over `total` steps."""
    it = xp.asarray(step, float)
    return end + (start - end) * (0.5 + 0.5 * xp.cos(np.pi * it / max(total - 1, 1)))


def scheduled_weight_decay(config: GeneratorOptimizerConfig, step: Any, total: int, xp: ModuleType = np) -> Any:
    """Weight decay of a generator at `step` of `total`; constant where no end is given."""
    return cosine_weight_decay(step, config.weight_decay, config.weight_decay_end or config.weight_decay, total, xp)
