"""Adversarial and reconstruction terms as pure functions of arrays; weighting and summing is the step's business.

Logits are positive for real. Shape legend: B batch, S pixels of images (H W) or clips (T H W), s patches.
References: Lim & Ye, Geometric GAN (hinge, 2017); Goodfellow et al. (2014); Tseng et al., LeCAM (2021).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Objective = Literal["hinge", "vanilla", "non_saturating"]
Logits = Float[Array, "B *s 1"]


class LecamAverages(NamedTuple):
    """Exponential averages of the mean logits of real and of fake images, from 0."""

    real: Float[Array, ""]
    fake: Float[Array, ""]


def discriminator_loss(real: Logits, fake: Logits, objective: Objective) -> Float[Array, ""]:
    """Loss of the discriminator on logits of real and of reconstructed images."""
    if objective == "hinge":
        return 0.5 * (jax.nn.relu(1.0 - real).mean() + jax.nn.relu(1.0 + fake).mean())
    if objective == "vanilla":
        return 0.5 * (jax.nn.softplus(-real).mean() + jax.nn.softplus(fake).mean())
    if objective == "non_saturating":
        return jax.nn.softplus(-_per_image(real)).mean() + jax.nn.softplus(_per_image(fake)).mean()
    raise ValueError(f"objective is {objective!r}: expected hinge, vanilla or non_saturating")


def generator_loss(fake: Logits) -> Float[Array, ""]:
    """Non-saturating loss of the generator on the mean logit of each image."""
    return jax.nn.softplus(-_per_image(fake)).mean()


def update_lecam(averages: LecamAverages, real: Logits, fake: Logits, decay: float) -> LecamAverages:
    """Move both averages towards the means of these logits."""
    return LecamAverages(
        real=decay * averages.real + (1.0 - decay) * jax.lax.stop_gradient(real.mean()),
        fake=decay * averages.fake + (1.0 - decay) * jax.lax.stop_gradient(fake.mean()),
    )


def lecam_regularizer(averages: LecamAverages, real: Logits, fake: Logits) -> Float[Array, ""]:
    """Pull real logits below, and fake logits above, the other side's average."""
    return jnp.square(jax.nn.relu(real - averages.fake)).mean() + jnp.square(jax.nn.relu(averages.real - fake)).mean()


def reconstruction_loss(images: Float[Array, "B *S C"], reconstructions: Float[Array, "B *S C"]) -> Float[Array, ""]:
    """Mean absolute difference."""
    return jnp.abs(images - reconstructions).mean()


def adaptive_weight(nll_gradient: Float[Array, "..."], adversarial_gradient: Float[Array, "..."]) -> Float[Array, ""]:
    """Ratio of gradient norms at the decoder's last kernel, within [0, 1e4] (Esser et al., 2021)."""
    ratio = jnp.linalg.norm(nll_gradient.ravel()) / (jnp.linalg.norm(adversarial_gradient.ravel()) + 1e-4)
    return jax.lax.stop_gradient(jnp.clip(ratio, 0.0, 1e4))


def _per_image(logits: Logits) -> Float[Array, " B"]:
    return logits.mean(axis=tuple(range(1, logits.ndim)))
