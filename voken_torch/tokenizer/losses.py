"""Adversarial and reconstruction terms as functions of tensors; weighting and summing is the step's business.

Logits are positive for real. Shape legend: B batch, S pixels of images (H W) or clips (T H W), s patches.
References: Lim & Ye, Geometric GAN (hinge, 2017); Goodfellow et al. (2014); Tseng et al., LeCAM (2021).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Objective = Literal["hinge", "vanilla", "non_saturating"]
Logits = Float[Tensor, "B 1 *s"]


class LecamAverages(NamedTuple):
    """Exponential averages of the mean logits of real and of fake images, from 0."""

    real: Float[Tensor, ""]
    fake: Float[Tensor, ""]


def discriminator_loss(real: Logits, fake: Logits, objective: Objective) -> Float[Tensor, ""]:
    """Loss of the discriminator on logits of real and of reconstructed images."""
    if objective == "hinge":
        return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())
    if objective == "vanilla":
        return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())
    if objective == "non_saturating":
        return F.softplus(-_per_image(real)).mean() + F.softplus(_per_image(fake)).mean()
    raise ValueError(f"objective is {objective!r}: expected hinge, vanilla or non_saturating")


def generator_loss(fake: Logits) -> Float[Tensor, ""]:
    """Non-saturating loss of the generator on the mean logit of each image."""
    return F.softplus(-_per_image(fake)).mean()


def update_lecam(
    averages: LecamAverages, real: Float[Tensor, "*s"], fake: Float[Tensor, "*s"], decay: float
) -> LecamAverages:
    """Move both averages towards the means of these logits."""
    return LecamAverages(
        real=decay * averages.real + (1.0 - decay) * real.detach().mean(),
        fake=decay * averages.fake + (1.0 - decay) * fake.detach().mean(),
    )


def lecam_regularizer(averages: LecamAverages, real: Logits, fake: Logits) -> Float[Tensor, ""]:
    """Pull real logits below, and fake logits above, the other side's average."""
    return F.relu(real - averages.fake).square().mean() + F.relu(averages.real - fake).square().mean()


def reconstruction_loss(images: Float[Tensor, "B C *S"], reconstructions: Float[Tensor, "B C *S"]) -> Float[Tensor, ""]:
    """Mean absolute difference."""
    return (images - reconstructions).abs().mean()


def adaptive_weight(
    nll_gradient: Float[Tensor, "..."], adversarial_gradient: Float[Tensor, "..."]
) -> Float[Tensor, ""]:
    """Ratio of gradient norms at the decoder's last kernel, within [0, 1e4] (Esser et al., 2021)."""
    ratio = nll_gradient.detach().norm() / (adversarial_gradient.detach().norm() + 1e-4)
    return ratio.clamp(0.0, 1e4)


def _per_image(logits: Logits) -> Float[Tensor, " B"]:
    return logits.flatten(1).mean(dim=1)
