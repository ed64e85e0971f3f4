"""The `model` section: the autoencoder of a tokenizer."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from voken_common.config.schema.base import Section
from voken_common.config.schema.bounds import LONGEST_LADDER, Channels, Factor, Layers, Side
from voken_common.config.schema.video import video_strides


class ModelConfig(Section):
    """The autoencoder. `magvit2` is Open-MAGVIT2's network and `magvit2_video` its network of causal 3-D convolutions
    (both for `lfq`), `vqgan` is IBQ's (for `ibq` and `vq`).
    """

    network: Literal["magvit2", "magvit2_video", "vqgan"]
    """Architecture of encoder and decoder."""
    resolution: Side
    """Side of the training images or frames in pixels; decides where attention sits. Other sizes run as well."""
    channels: Channels = 128
    """Width at full resolution; level i is `channels * channel_multipliers[i]` wide."""
    channel_multipliers: tuple[Factor, ...] = Field(min_length=1, max_length=LONGEST_LADDER)
    """One factor per level; every level after the first halves the sides."""
    residual_blocks: Layers
    """Residual blocks per level of the encoder."""
    z_channels: Channels
    """Channels of the latent; for LFQ they are the bits of a code."""
    image_channels: Channels = 3
    """Channels of the images."""
    attention_resolutions: tuple[Side, ...] = ()
    """Sides, in latent pixels at `resolution`, of the levels that have attention; vqgan only."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout inside the residual blocks; vqgan only."""
    adaptive_norm: bool = True
    """Of `magvit2`: the decoder's levels are modulated by its input. False is the network of June 2024."""
    norm_groups: Channels = 32
    """Groups of every group norm, adaptive ones too; 32 in every published model. As many groups as channels at a
    level erase each channel's mean over the image, and with it absolute colour: narrow networks want fewer."""

    @property
    def downsampling(self) -> int:
        """Pixels per token along one side."""
        return 2 ** (len(self.channel_multipliers) - 1)

    @property
    def is_video(self) -> bool:
        """True where the network sees clips (an image is a clip of one frame), false where it sees images."""
        return self.network == "magvit2_video"

    @property
    def level_strides(self) -> tuple[tuple[int, ...], ...]:
        """Factor along (height, width), or (time, height, width), between each level and the next smaller one."""
        if not self.is_video:
            return ((2, 2),) * (len(self.channel_multipliers) - 1)
        return video_strides(self.channel_multipliers)

    @property
    def time_downsampling(self) -> int:
        """Frames per latent frame after the first: n frames become (n - 1) / time_downsampling + 1. 1 for images."""
        return math.prod(stride[0] for stride in self.level_strides) if self.is_video else 1

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if self.resolution % self.downsampling:
            raise ValueError(
                f"resolution {self.resolution} is not divisible by the downsampling factor {self.downsampling} "
                f"that {len(self.channel_multipliers)} channel_multipliers give"
            )
        for multiplier in self.channel_multipliers:
            if self.channels * multiplier % self.norm_groups:
                raise ValueError(
                    f"channels * multiplier = {self.channels} * {multiplier} is not divisible by the "
                    f"{self.norm_groups} groups of group norm (norm_groups); choose channels as a multiple of "
                    f"{self.norm_groups}, or another norm_groups"
                )
        levels = [self.resolution // 2**i for i in range(len(self.channel_multipliers))]
        missing = [r for r in self.attention_resolutions if r not in levels]
        if missing:
            raise ValueError(
                f"attention_resolutions {missing} are never reached: with resolution {self.resolution} the levels are "
                f"{levels}"
            )
        if self.network != "vqgan" and self.attention_resolutions:
            raise ValueError(f"network {self.network} has no attention: leave attention_resolutions empty or use vqgan")
        if self.network != "magvit2" and not self.adaptive_norm:
            raise ValueError(f"network {self.network} has no network of June 2024: set adaptive_norm to true")
        if self.network != "vqgan" and self.dropout:
            raise ValueError(f"network {self.network} has no dropout: set dropout to 0 or use vqgan")
        return self
