"""The sections of a tokenizer's losses: discriminators, how the two players are weighted, and LPIPS."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, model_validator

from voken_common.config.schema.base import Section
from voken_common.config.schema.bounds import Channels, Layers, NonNegativeInt
from voken_common.config.schema.run import Fraction
from voken_common.config.schema.video import PatchGAN3DConfig


class PatchGANConfig(Section):
    """Patch discriminator with batch norm."""

    kind: Literal["patchgan"] = "patchgan"
    """Kind of this section."""
    channels: Channels = 64
    """Width of the first layer; each layer doubles it up to 8 times."""
    layers: Layers = 3
    """Strided layers after the first."""

    @property
    def strides(self) -> tuple[tuple[int, int], ...]:
        """Along (height, width), of every convolution."""
        return ((2, 2),) * self.layers + ((1, 1), (1, 1))


class BlurConfig(Section):
    """Discriminator that downsamples with a binomial blur (or with 2x2 average pooling) and group norm."""

    kind: Literal["blur"] = "blur"
    """Kind of this section."""
    hidden_channels: Channels = 128
    """Width of the first layer; stage i has 2^i times as many."""
    stages: Layers = 4
    """Stages, each of which halves the sides."""
    blur_resample: bool = True
    """True downsamples with a binomial blur, false with 2 x 2 average pooling."""
    blur_kernel_size: Annotated[int, Field(ge=3, le=5)] = 4
    """Length of the binomial kernel: 3, 4 or 5."""

    @model_validator(mode="after")
    def _check(self) -> BlurConfig:
        if self.hidden_channels % 32:
            raise ValueError(f"hidden_channels {self.hidden_channels} is not divisible by the 32 groups of group norm")
        return self


DiscriminatorConfig = Annotated[PatchGANConfig | PatchGAN3DConfig | BlurConfig, Field(discriminator="kind")]


class AdversarialConfig(Section):
    """Objective and weights of the two players' losses."""

    objective: Literal["hinge", "vanilla", "non_saturating"] = "hinge"
    """Loss of the discriminator."""
    generator_weight: NonNegativeFloat | None = 0.1
    """None: adaptive weight, adaptive_scale * |d nll / d w| / (|d g / d w| + 1e-4), w the decoder's last kernel."""
    adaptive_scale: NonNegativeFloat = 0.8
    """Factor on the adaptive weight; used when generator_weight is null."""
    discriminator_factor: NonNegativeFloat = 1.0
    """Factor on both adversarial terms from `start_step` on."""
    start_step: NonNegativeInt = 0
    """Both adversarial terms are 0 before this step; the passes and the optimizer steps happen all the same."""
    lecam_weight: NonNegativeFloat = 0.05
    """Weight of the LeCAM regulariser in the loss of the discriminator."""
    lecam_decay: Fraction = 0.999
    """Decay of the averages of the logits that LeCAM uses."""
    lecam_from_start: bool | None = None
    """Move LeCAM's averages from the first step, or only once `start_step` is reached; None: as the reference does for
    the network, from the start for magvit2."""
    first: Literal["generator", "discriminator"] | None = None
    """The player that is updated first; the other meets the updated one, except that the discriminator after the
    generator keeps its reconstruction. None: as the reference does, the generator for LFQ."""


class PerceptualConfig(Section):
    """LPIPS with VGG16. `weights`: none (no perceptual loss), auto (cache, else download) or a folder."""

    weights: str = "auto"
    """LPIPS weights: none (train without), auto (cache, else download) or a folder."""
    weight: NonNegativeFloat = 1.0
    """Weight of the perceptual loss beside the absolute difference."""
