"""Properties of the adversarial and reconstruction terms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from voken_jax.tokenizer.losses import (
    LecamAverages,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    lecam_regularizer,
    reconstruction_loss,
    update_lecam,
)

OBJECTIVES = ["hinge", "vanilla", "non_saturating"]
LOGITS = arrays(np.float32, (2, 3, 3, 1), elements=st.floats(-10, 10, width=32))
ZERO = LecamAverages(jnp.zeros(()), jnp.zeros(()))


@pytest.mark.parametrize("objective", OBJECTIVES)
@given(real=LOGITS, fake=LOGITS)
def test_a_better_discriminator_has_a_lower_loss(objective, real, fake):
    loss = discriminator_loss(real, fake, objective)
    assert loss >= 0
    assert discriminator_loss(real + 1, fake - 1, objective) <= loss + 1e-5


@pytest.mark.parametrize("objective", OBJECTIVES)
@given(real=LOGITS, fake=LOGITS)
def test_swapping_the_sides_flips_the_sign(objective, real, fake):
    np.testing.assert_allclose(
        discriminator_loss(real, fake, objective), discriminator_loss(-fake, -real, objective), rtol=1e-5, atol=1e-6
    )


def test_hinge_is_flat_beyond_its_margin():
    real, fake = jnp.full((1, 2, 2, 1), 1.5), jnp.full((1, 2, 2, 1), -1.5)
    value, slope = jax.value_and_grad(discriminator_loss)(real, fake, "hinge")
    assert value == 0
    np.testing.assert_array_equal(slope, 0)


@pytest.mark.parametrize(
    "objective, value", [("hinge", 1.0), ("vanilla", np.log(2)), ("non_saturating", 2 * np.log(2))]
)
def test_undecided_logits(objective, value):
    zeros = jnp.zeros((2, 3, 3, 1))
    np.testing.assert_allclose(discriminator_loss(zeros, zeros, objective), value, rtol=1e-6)


def test_non_saturating_averages_each_image_first():
    logits = jnp.asarray([[[[4.0], [-4.0]]], [[[1.0], [3.0]]]])
    expected = np.mean(np.log1p(np.exp(-np.asarray([0.0, 2.0]))))
    np.testing.assert_allclose(generator_loss(logits), expected, rtol=1e-6)


def test_unknown_objective():
    with pytest.raises(ValueError, match="objective is 'wasserstein': expected hinge, vanilla or non_saturating"):
        discriminator_loss(jnp.zeros((1, 1, 1, 1)), jnp.zeros((1, 1, 1, 1)), "wasserstein")


def test_lecam_averages_approach_the_means_and_carry_no_gradient():
    real, fake = jnp.full((1, 2, 2, 1), 3.0), jnp.full((1, 2, 2, 1), -2.0)
    averages = ZERO
    for _ in range(60):
        averages = update_lecam(averages, real, fake, 0.8)
    np.testing.assert_allclose((averages.real, averages.fake), (3.0, -2.0), rtol=1e-5)
    slope = jax.grad(lambda real: update_lecam(ZERO, real, fake, 0.5).real)(real)
    np.testing.assert_array_equal(slope, 0)


@given(real=LOGITS, fake=LOGITS)
def test_lecam_is_zero_only_on_the_right_side(real, fake):
    averages = LecamAverages(real=jnp.asarray(float(fake.min())), fake=jnp.asarray(float(real.max())))
    assert lecam_regularizer(averages, real, fake) == 0
    assert lecam_regularizer(ZERO, real, fake) >= 0


def test_reconstruction_loss():
    image = jnp.linspace(-1, 1, 12).reshape(1, 2, 2, 3)
    assert reconstruction_loss(image, image) == 0
    np.testing.assert_allclose(reconstruction_loss(image, image + 0.25), 0.25, rtol=1e-6)


def test_adaptive_weight():
    three, four = jnp.full((3, 3), 1.0), jnp.full((4, 4), 0.5)
    np.testing.assert_allclose(adaptive_weight(three, four), 3.0 / (2.0 + 1e-4), rtol=1e-6)
    assert adaptive_weight(three * 1e6, four * 0) == 1e4
    assert adaptive_weight(three * 0, four) == 0
    np.testing.assert_array_equal(jax.grad(lambda g: adaptive_weight(g, four))(three), 0)
