"""Metrics that a generator's run logs besides its losses, the same in both frameworks."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int

from voken_common.config.schedules import Schedule, scheduled_weight_decay
from voken_common.config.schema.generator import GeneratorConfig
from voken_common.sampling.requests import seed_of
from voken_common.training.flops import peak_flops, sample_flops

logger = logging.getLogger("voken")

_LARGEST = 700.0
"""Its exponential is still finite."""


def shown(config: GeneratorConfig) -> tuple[str, ...]:
    """Training metrics that the progress bar shows."""
    return ("loss", *(f"accuracy{suffix}" for suffix in config.model.suffixes))


def perplexities(metrics: Mapping[str, float]) -> dict[str, float]:
    """The exponential of every sub-token's loss in nats: how many equally likely codes would cost as much."""
    parts = [name for name in metrics if name.startswith("loss_")] or ["loss"]
    return {name.replace("loss", "perplexity"): math.exp(min(metrics[name], _LARGEST)) for name in parts}


def with_schedules(
    config: GeneratorConfig, means: Mapping[str, float], schedule: Schedule, number: int, total_steps: int
) -> dict[str, float]:
    """Return the metrics to log after step `number` (from 1): means, perplexities, learning rate and weight decay."""
    optimizer = config.optimizer
    scheduled = {
        "learning_rate": optimizer.learning_rate * float(schedule(number - 1)),
        "weight_decay": float(scheduled_weight_decay(optimizer, number - 1, total_steps)),
    }
    return {**means, **perplexities(means), **scheduled}


def rates(config: GeneratorConfig, device: str, devices: int) -> dict[str, float]:
    """Rates per one sample per second: tokens per second, and utilisation if the device's peak is known.

    Args:
        config: the run.
        device: the name that the devices give themselves.
        devices: how many share the batch.
    """
    result = {"tokens_per_second": float(config.model.tokens)}
    dtype = config.precision.compute_dtype
    peak = peak_flops(device, dtype)
    if peak is None:
        logger.info("model FLOPs utilisation is not logged: no peak is known for %s in %s", device, dtype)
        return result
    return {**result, "model_flops_utilization": sample_flops(config.model) / (peak * devices)}


def shown_labels(count: int, classes: int) -> Int[np.ndarray, " B"]:
    """Choose as many classes as there are samples, spread over all; in turn if there are fewer classes."""
    return (np.arange(count) * max(classes // max(count, 1), 1) % classes).astype(np.int32)


def shown_seeds(seed: int, count: int) -> list[int]:
    """A seed for each of the samples that a run shows, as `Generator.sample` takes them from the run's seed."""
    return [seed_of(seed, number) for number in range(count)]
