"""A step is made only where all its metrics are finite; the one place that decides it, and names what was not."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from voken_common.errors import NonFiniteError

Metrics = dict[str, Float[Tensor, ""]]


def require_finite(metrics: Metrics, step: int) -> None:
    """Raise NonFiniteError unless all metrics of the step after `step` others are finite.

    One bit leaves the device per step; the names only on failure.
    """
    finite = torch.stack([torch.isfinite(value) for value in metrics.values()])
    if not finite.all().item():
        terms = [name for name, good in zip(metrics, finite.tolist(), strict=True) if not good]
        raise NonFiniteError(step + 1, sorted(terms))
