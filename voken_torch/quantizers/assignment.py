"""Common part of the two forms of the soft assignment: settings, results and incoming gradients.

Shapes: N tokens, D code dimension.

`streaming` walks over blocks of codes and keeps nothing of size tokens x codes; `rows` holds all logits of a tile of
tokens, which saves two of seven matrix products where a budget allows it. Both give the same numbers.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from voken_torch.quantizers.blocks import ReduceMean


class Settings(NamedTuple):
    """Settings of the soft assignment.

    Attributes:
        temperature: of the softmax inside the entropy terms.
        use_entropy: False skips the entropy terms.
        memory_budget_bytes: bound on all tokens x codes temporaries together.
        reduce_mean: makes the average assignment the mean over the tokens of all processes.
    """

    temperature: float
    use_entropy: bool
    memory_budget_bytes: int
    reduce_mean: ReduceMean | None = None


class Assignment(NamedTuple):
    """Per-token results of the search, and the scalars of the entropy terms."""

    hard: Float[Tensor, "N D"]
    indices: Int[Tensor, " N"]
    sample_entropy: Float[Tensor, ""]
    average_entropy: Float[Tensor, ""]


class Cotangents(NamedTuple):
    """Incoming gradients of the outputs of the soft assignment."""

    soft: Float[Tensor, "N D"]
    hard: Float[Tensor, "N D"]
    sample_entropy: Float[Tensor, ""]
    average_entropy: Float[Tensor, ""]
