"""Adversarial terms and the LeCAM averages."""

import re

import jax.numpy as jnp

from tests.support.golden_cases import FORWARD_FLOAT32, assert_close, channels_last, uniform
from voken_jax.tokenizer.losses import (
    LecamAverages,
    discriminator_loss,
    generator_loss,
    lecam_regularizer,
    update_lecam,
)

KINDS = ["gan_losses"]


def logits(text, seed, dtype):
    """Logits from their description: uniform((shape),seed,"name")."""
    shape, name = re.fullmatch(r'uniform\(\(([\d, ]+)\), *seed, *"(\w+)"\)', text).groups()
    shape = tuple(int(side) for side in shape.split(","))
    return jnp.asarray(channels_last(uniform(shape, seed, name)), dtype)


def test_losses(case, precision):
    real = logits(case.config["logits_real"], case.seed, precision)
    fake = logits(case.config["logits_fake"], case.seed, precision)
    decay = float(re.search(r"decay ([\d.]+)", case.config["lecam"]).group(1).rstrip("."))
    zero = jnp.zeros((), precision)
    averages = update_lecam(LecamAverages(zero, zero), real, fake, decay)
    averages = update_lecam(averages, fake, real, decay)
    found = {
        "hinge_d": discriminator_loss(real, fake, "hinge"),
        "vanilla_d": discriminator_loss(real, fake, "vanilla"),
        "nonsat_d": discriminator_loss(real, fake, "non_saturating"),
        "nonsat_g": generator_loss(fake),
        "lecam_real_ema": averages.real,
        "lecam_fake_ema": averages.fake,
        "lecam_reg": lecam_regularizer(averages, real, fake),
    }
    assert {f"out/{name}" for name in found} == set(case.arrays)
    for name, value in found.items():
        assert_close(value, case.arrays[f"out/{name}"], name, FORWARD_FLOAT32 if precision == "float32" else None)
