"""LFQ against the dense softmax over all sign codes: values, gradients, every cut into blocks, extreme inputs."""

import math
from functools import cache

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from tests.support.oracles import dense_lfq
from voken_jax.quantizers import indices_to_codes, join_indices, lfq, lfq_indices, split_indices
from voken_jax.quantizers.entropy import bernoulli_entropy, factorized_average_entropy

TOLERANCE = 1e-10


def random_tokens(shape, scale, seed=0):
    return jnp.asarray(scale * np.random.default_rng(seed).standard_normal(shape))


@cache
def gradients(function, **options):
    """Compiled (objective, outputs), gradient of a quantizer."""

    def objective(x, w):
        out = function(x, **options)
        quantized, _, sample, codebook, aux, commitment = out
        return 0.3 * sample + 0.7 * codebook + aux + 0.25 * commitment + jnp.sum(quantized * w), out

    return jax.jit(jax.value_and_grad(objective, has_aux=True))


def assert_same(found, expected, tolerance=TOLERANCE):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1, np.abs(b).max()))


@pytest.mark.parametrize("tokens, dim, block_bytes", [(5, 1, 32), (7, 5, 64), (3, 8, 32), (3, 8, 520), (1, 6, 2**24)])
def test_equals_the_dense_softmax(x64, tokens, dim, block_bytes):
    x, w = random_tokens((tokens, dim), 0.006), random_tokens((tokens, dim), 1.0, seed=1)
    weights = {"sample_weight": 0.7, "batch_weight": 1.3}
    assert_same(gradients(lfq, block_bytes=block_bytes, **weights)(x, w), gradients(dense_lfq, **weights)(x, w))


@settings(max_examples=30)
@given(
    shape=st.sampled_from([(1, 1), (4, 3), (5, 7)]),
    scale=st.sampled_from([0.0, 1e-4, 0.005, 0.05, 30.0]) | st.floats(1e-6, 100),
    block_bytes=st.sampled_from([32, 4096]),
    seed=st.integers(0, 1000),
)
def test_equals_the_dense_softmax_at_any_scale(shape, scale, block_bytes, seed):
    with jax.enable_x64(True):
        x, w = random_tokens(shape, scale, seed), random_tokens(shape, 1.0, seed + 9)
        assert_same(gradients(lfq, block_bytes=block_bytes)(x, w), gradients(dense_lfq)(x, w), 1e-9)


def test_gradient_agrees_with_finite_differences(x64):
    x = random_tokens((4, 5), 0.004)

    @jax.jit
    def loss(x):
        return lfq(x, block_bytes=64).aux_loss

    direction = random_tokens((4, 5), 1.0, seed=3)
    step = 1e-7
    numeric = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
    assert float(jnp.vdot(jax.grad(loss)(x), direction)) == pytest.approx(float(numeric), rel=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4, 1e30])
def test_extreme_logits_stay_finite(dtype, scale):
    x = (scale * jnp.asarray(np.random.default_rng(0).choice([-1.0, -0.3, 0.0, 0.5], (6, 9)))).astype(dtype)
    (_, out), gradient = gradients(lfq)(x, jnp.zeros_like(x))
    assert np.isfinite(out.aux_loss)
    assert np.isfinite(np.asarray(gradient, np.float32)).all()
    if scale == 0:
        assert float(out.per_sample_entropy) == pytest.approx(9 * math.log(2), rel=1e-6)


def test_float32_keeps_the_gradient_of_a_large_codebook(x64):
    x = random_tokens((64, 14), 0.005)
    gradient = jax.jit(jax.grad(lambda x: lfq(x).aux_loss))
    exact, single = gradient(x), gradient(x.astype(jnp.float32))
    assert single.dtype == jnp.float32
    assert float(jnp.abs(single - exact).max() / jnp.abs(exact).max()) < 1e-5


def test_a_collapsed_batch_has_no_codebook_entropy(x64):
    out = lfq(jnp.ones((5, 6)))
    assert float(out.per_sample_entropy) == pytest.approx(0, abs=1e-12)
    assert float(out.codebook_entropy) == pytest.approx(-math.log(1 + 1e-5), rel=1e-6)


@pytest.mark.usefixtures("optimized")
def test_temporaries_stay_within_the_block():
    x = jax.ShapeDtypeStruct((64, 20), jnp.float32)
    block = 2**16
    compiled = jax.jit(jax.grad(lambda x: lfq(x, block_bytes=block).aux_loss)).lower(x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 16 * block


def test_bernoulli_entropy_has_its_exact_slope(x64):
    t = jnp.asarray([-800.0, -3.0, -1e-6, 0.0, 1e-6, 2.0, 800.0])
    p = jax.nn.sigmoid(t)
    slope = jax.vmap(jax.grad(bernoulli_entropy))(t)
    np.testing.assert_allclose(slope, -t * p * jax.nn.sigmoid(-t), rtol=1e-12, atol=0)


def test_quantized_is_exactly_the_signs_in_the_input_dtype():
    x = jnp.asarray([[[0.3, -0.7, 0.0, 1e-20]]], jnp.bfloat16)
    out = lfq(x, with_entropy=False)
    assert out.quantized.dtype == jnp.bfloat16
    assert out.quantized.tolist() == [[[1, -1, -1, 1]]]
    assert out.indices.tolist() == [[0b1001]]
    assert out.per_sample_entropy == out.codebook_entropy == out.aux_loss == 0


@pytest.mark.parametrize("first", [1, 6, 17])
def test_indices_codes_and_parts_convert_both_ways(first):
    indices = jnp.asarray(np.random.default_rng(first).integers(0, 2**18, 64), jnp.int32)
    codes = indices_to_codes(indices, 18)
    assert set(np.unique(codes)) == {-1.0, 1.0}
    assert (lfq_indices(codes) == indices).all()
    pre, post = split_indices(indices, (first, 18 - first))
    assert (lfq_indices(codes[..., :first]) == pre).all()
    assert (lfq_indices(codes[..., first:]) == post).all()
    assert (join_indices(pre, post, (first, 18 - first)) == indices).all()


def test_31_channels_are_numbered():
    assert int(lfq_indices(jnp.ones((31,)))) == 2**31 - 1
    assert (indices_to_codes(jnp.int32(2**31 - 1), 31) == 1).all()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: lfq(jnp.ones((2, 32))), "32 channels"),
        (lambda: lfq(jnp.ones((2, 0))), "0 channels"),
        (lambda: lfq(jnp.ones((0, 4))), "no tokens"),
        (lambda: lfq(jnp.ones((2, 4)), temperature=0.0), "must be positive"),
        (lambda: split_indices(jnp.zeros(3, jnp.int32), (0, 4)), "two positive widths"),
        (lambda: factorized_average_entropy(jnp.ones((2, 4)), 8), "room for at least 4"),
    ],
)
def test_errors_say_what_was_found(call, message):
    with pytest.raises(ValueError, match=message):
        call()
