"""Configuration of the autoregressive transformers over tokens."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, model_validator

from voken_common.config.schema.base import Section
from voken_common.config.schema.bounds import Channels, Codes, Layers, Side

Probability = Annotated[float, Field(ge=0.0, lt=1.0)]


class TransformerConfig(Section):
    """A class-conditional transformer over a square grid of tokens.

    `factorized` (Open-MAGVIT2) predicts two sub-tokens per position, the second by a short transformer of its own;
    `adaptive` (IBQ) predicts one token, every block modulated by the class.
    """

    network: Literal["factorized", "adaptive"]
    """Family: factorized (Open-MAGVIT2) or adaptive (IBQ)."""
    vocabularies: Annotated[tuple[Codes, ...], Field(min_length=1, max_length=2)]
    """Codes per (sub-)token, in the order in which they are predicted."""
    grid: Side = 16
    """Tokens along one side."""
    classes: Codes = 1000
    """Number of classes."""
    layers: Layers
    """Transformer blocks."""
    factorized_layers: Annotated[int, Field(ge=0, le=2**10)] = 0
    """Blocks that predict the second sub-token; factorized only."""
    heads: Layers
    """Attention heads."""
    width: Channels
    """Features per position."""
    multiple_of: Channels = 256
    """The feed-forward width is 8/3 of the width, rounded up to a multiple of this."""
    modulation_scale: NonNegativeFloat = 1e-3
    """Factor on the initial gates of the adaptive blocks."""
    token_dropout: Probability = 0.1
    """Dropout on the embedded sequence."""
    residual_dropout: Probability = 0.1
    """Dropout after attention."""
    feed_forward_dropout: Probability = 0.1
    """Dropout after the feed-forward layer."""
    label_dropout: Probability = 0.1
    """How often training replaces the class by the one that stands for none."""

    @property
    def tokens(self) -> int:
        """Positions of the sequence."""
        return self.grid**2

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Suffixes of metric names, one per sub-token; empty if there is only one."""
        parts = len(self.vocabularies)
        return ("",) if parts == 1 else tuple(f"_{part}" for part in range(parts))

    @property
    def head_width(self) -> int:
        """Features per attention head."""
        return self.width // self.heads

    @property
    def feed_forward_width(self) -> int:
        """Hidden features of the feed-forward layer."""
        return math.ceil(int(8 * self.width / 3) / self.multiple_of) * self.multiple_of

    @model_validator(mode="after")
    def _check(self) -> TransformerConfig:
        if self.width % self.heads or self.head_width % 4:
            raise ValueError(
                f"width {self.width} over {self.heads} heads gives {self.width / self.heads:g} features per head; the "
                "rotary embedding of rows and columns needs a multiple of 4"
            )
        expected = 2 if self.network == "factorized" else 1
        if len(self.vocabularies) != expected:
            raise ValueError(
                f"network {self.network} predicts {expected} (sub-)token(s) per position, found vocabularies "
                f"{self.vocabularies}"
            )
        if (self.network == "factorized") != (self.factorized_layers > 0):
            raise ValueError(
                f"factorized_layers is {self.factorized_layers}: network factorized needs at least 1, adaptive none"
            )
        return self
