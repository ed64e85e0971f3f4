"""A step is kept only where all its metrics are finite; the one place that decides it, and names what was not."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Metrics = dict[str, Float[Array, ""]]


def keep_if_finite(old: Any, new: Any, metrics: Metrics) -> Any:
    """Return `new`, or `old` with a failure bit per metric (by sorted name) that is not finite.

    A failed state never moves again, so that it can be looked at on logging steps only. Traceable.

    Args:
        old: a state, a dataclass with a field `failure`.
        new: the state after the step.
        metrics: of the step.
    """
    bad = [jnp.logical_not(jnp.isfinite(metrics[name])) for name in sorted(metrics)]
    bits = sum(flag.astype(jnp.int32) << i for i, flag in enumerate(bad))
    failure = jnp.where(old.failure == 0, bits, old.failure)
    kept = jax.tree.map(lambda a, b: jnp.where(failure == 0, a, b), new, old)
    return dataclasses.replace(kept, failure=failure)


def cleared(state: Any) -> Any:
    """Return a state that was refused a step without its failure bits, so that it moves again."""
    zero = jax.device_put(np.zeros((), state.failure.dtype), state.failure.sharding)
    return dataclasses.replace(state, failure=zero)


def failed_terms(failure: int, metrics: Metrics) -> list[str]:
    """Return the names of the metrics whose failure bits are set."""
    return [name for i, name in enumerate(sorted(metrics)) if failure >> i & 1]
