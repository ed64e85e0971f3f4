"""Settings of sampling, the same in both frameworks."""

from __future__ import annotations

from typing import Literal, NamedTuple

Guidance = Literal["constant", "linear", "power-cosine"]
COSINE_POWER = 2.75


class Sampling(NamedTuple):
    """Settings of sampling; tuples hold one value per sub-token. Hashable: a program is compiled for each.

    Attributes:
        scale: guidance scale; 1 means none.
        temperature: divides the guided logits; 0 takes the most likely code.
        top_k: codes that stay; 0 means all.
        top_p: probability mass that stays.
        guidance: how the scale grows over the positions: constant, linear from 1, or by a power of a cosine from 1.
    """

    scale: tuple[float, ...] = (1.0,)
    temperature: tuple[float, ...] = (1.0,)
    top_k: tuple[int, ...] = (0,)
    top_p: tuple[float, ...] = (1.0,)
    guidance: Guidance = "constant"

    @property
    def guided(self) -> bool:
        """True if any sub-token is drawn with guidance, which doubles the batch."""
        return any(scale != 1 for scale in self.scale)
