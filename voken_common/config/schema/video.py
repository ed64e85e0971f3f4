"""Configuration of video tokenizers: downsampling of time, clip lengths, the 3-D discriminator.

Reference: Luo et al., Open-MAGVIT2 (2024), after Yu et al., MAGVIT-v2 (2023).
"""

from __future__ import annotations

from typing import Literal

from voken_common.config.schema.base import Section
from voken_common.config.schema.bounds import Channels, Layers

WINDOW = 17
"""Frames of a window of the published tokenizer, which cuts longer videos into consecutive ones."""


class PatchGAN3DConfig(Section):
    """Patch discriminator over whole clips: 3x3x3 convolutions with batch norm."""

    kind: Literal["patchgan_3d"] = "patchgan_3d"
    """Kind of this section."""
    channels: Channels = 64
    """Width of the first layer; each layer doubles it up to 8 times."""
    layers: Layers = 4
    """Strided layers."""

    @property
    def strides(self) -> tuple[tuple[int, int, int], ...]:
        """Along (time, height, width), of every convolution: time is halved by the first two only."""
        last = self.layers
        inner = [(2 if n == 1 else 1, 2, 2) for n in range(1, last)]
        return ((2, 2, 2), *inner, (1, 1, 1), (1, 1, 1))


def video_strides(channel_multipliers: tuple[int, ...]) -> tuple[tuple[int, int, int], ...]:
    """Factor along (time, height, width) from each level to the next: time is halved where the multiplier is not 1."""
    return tuple((1, 2, 2) if multiplier == 1 else (2, 2, 2) for multiplier in channel_multipliers[:-1])


def latent_frames(frames: int, time_downsampling: int) -> int:
    """Latent frames of a clip of `frames` frames.

    Raises:
        ValueError: the clip has no frames, or the decoder would not give as many back.
    """
    if frames < 1 or (frames - 1) % time_downsampling:
        shorter = max((frames - 1) // time_downsampling * time_downsampling + 1, 1)
        raise ValueError(
            f"a clip has {frames} frames: expected a multiple of {time_downsampling} and one more, such as {shorter} "
            f"or {shorter + time_downsampling}; repeat the last frame, or cut"
        )
    return (frames - 1) // time_downsampling + 1
