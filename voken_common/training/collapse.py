"""Notices a codebook of which hardly anything is used any more: in validation, and between validations in training."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from voken_common.config.schema.run import HealthConfig


class CodeUse(NamedTuple):
    """Share of a codebook that some tokens used.

    Attributes:
        used: distinct codes.
        codes: size of the codebook.
        tokens: how many tokens there were.
    """

    used: int
    codes: int
    tokens: int

    @property
    def share(self) -> float:
        """Used codes over all, in [0, 1]."""
        return self.used / self.codes

    @property
    def possible(self) -> float:
        """Expected share of codes that n evenly spread tokens use: 1 - exp(-n / k) of k codes."""
        return 1 - math.exp(-self.tokens / self.codes)


class CollapseWatch:
    """Compares the codes in use with those that could be, in validations and in the logging intervals of training.

    Args:
        config: `collapse_usage`, `collapse_window` and `collapse_steps`.
        first_step: where this run begins or continues.
    """

    def __init__(self, config: HealthConfig, first_step: int = 0):
        self._config = config
        self._low: list[float] = []
        self._fine_until = first_step
        self._told = {"validation": False, "training": False}

    def validated(self, step: int, counts: Int[np.ndarray, " k"]) -> str | None:
        """Take how often one validation used each code; a warning once per collapse, else None."""
        use = CodeUse(int(np.count_nonzero(counts)), counts.size, int(counts.sum()))
        if self._is_fine(use):
            self._low, self._told["validation"] = [], False
            return None
        window = self._config.collapse_window
        self._low = [*self._low, use.share][-window:]
        if len(self._low) < window:
            return None
        shown = ", ".join(f"{share:.2%}" for share in self._low)
        return self._tell("validation", step, f"the last {window} validation(s) used {shown}", use)

    def trained(self, step: int, use: CodeUse) -> str | None:
        """Take what the training batches since the last call used; a warning once per collapse, else None."""
        if not use.tokens:
            return None
        if self._is_fine(use):
            self._fine_until, self._told["training"] = step, False
            return None
        since = step - self._fine_until
        if since < self._config.collapse_steps:
            return None
        what = f"for {since} steps training has used too few of its codes, lately {use.share:.2%}"
        return self._tell("training", step, what, use)

    def _is_fine(self, use: CodeUse) -> bool:
        return use.share >= self._config.collapse_usage * use.possible

    def _tell(self, where: str, step: int, what: str, use: CodeUse) -> str | None:
        # Whichever sees it first tells; the other would only repeat it.
        told = any(self._told.values())
        self._told[where] = True
        if told:
            return None
        return (
            f"step {step}: the codebook has collapsed: {what} of {use.codes} codes, where {use.tokens} tokens could "
            f"use {use.possible:.2%} (health.collapse_usage is {self._config.collapse_usage:g} of that). Raise the "
            "weight of the batch entropy or the temperature, or lower the learning rate: docs/quantizers.md, section "
            "Guidance"
        )
