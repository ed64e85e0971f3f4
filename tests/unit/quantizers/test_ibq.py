"""IBQ against the dense attention with a hard forward: values, gradients, every cut into blocks, extreme inputs."""

import math
from functools import cache, partial

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from tests.support.oracles import dense_ibq
from voken_jax.quantizers import codebook_lookup, ibq, ibq_encode
from voken_jax.quantizers.blocks import column_argmax, column_sum, plan_blocks, plan_rows


def problem(tokens, codes, dim, scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    z, w = (jnp.asarray(rng.standard_normal((tokens, dim))) for _ in range(2))
    return scale * z, scale * jnp.asarray(rng.standard_normal((codes, dim))), w


@cache
def compiled(function, **options):
    """Compiled (objective, outputs), gradients of a quantizer."""

    def objective(z, codebook, w):
        out = function(z, codebook, **options)
        quantized, _, quant_loss, sample, average, entropy_loss = out
        total = 0.9 * quant_loss + 0.3 * sample + 0.2 * average + 0.05 * entropy_loss
        return total + jnp.sum(quantized * w), out

    return jax.jit(jax.value_and_grad(objective, argnums=(0, 1), has_aux=True))


def gradients(function, z, codebook, w, **options):
    return compiled(function, **options)(z, codebook, w)


def assert_same(found, expected, tolerance=1e-10):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1, np.abs(b).max()))


def budget(block, tile):
    """The bytes that make float64 blocks of about `block` codes by `tile` tokens."""
    return 8 * 4 * block * tile


CUTS = {
    "whole rows": 2**26,
    "ragged blocks": budget(9, 7),
    "ragged blocks and tiles": budget(23, 3),
    "one token at a time": budget(5, 1),
}


@pytest.mark.parametrize("use_entropy", [True, False])
@pytest.mark.parametrize("cut", CUTS)
def test_equals_the_dense_definition(x64, cut, use_entropy):
    z, codebook, w = problem(7, 23, 5)
    options = {"beta": 0.4, "temperature": 0.1, "sample_weight": 0.8, "batch_weight": 1.2, "use_entropy": use_entropy}
    ours = gradients(ibq, z, codebook, w, memory_budget_bytes=CUTS[cut], **options)
    assert_same(ours, gradients(dense_ibq, z, codebook, w, **options))


def test_the_cuts_are_what_they_are_called():
    plans = [plan_blocks(7, 23, 8, bytes_) for bytes_ in CUTS.values()]
    assert [plan.blocks > 1 for plan in plans] == [False, False, False, True]
    assert [plan.tiles > 1 for plan in plans] == [False, True, True, True]
    assert [plan_rows(7, 23, 8, bytes_) is not None for bytes_ in CUTS.values()] == [True, False, False, False]
    plan = plan_blocks(7, 600, 8, budget(256, 7))
    assert (plan.tiles, plan.blocks, plan.ragged) == (1, 3, True)
    assert plan_rows(7, 600, 8, budget(256, 7)) is None


@pytest.mark.parametrize("use_entropy", [True, False])
def test_many_ragged_blocks_of_one_tile(x64, use_entropy):
    z, codebook, w = problem(7, 600, 4, seed=4)
    options = {"temperature": 0.05, "use_entropy": use_entropy}
    ours = gradients(ibq, z, codebook, w, memory_budget_bytes=budget(256, 7), **options)
    assert_same(ours, gradients(dense_ibq, z, codebook, w, **options))


ROWS_BUDGET = 2**21


@pytest.mark.parametrize("temperature", [0.05, 3.0])
@pytest.mark.parametrize("use_entropy", [True, False])
def test_whole_rows_in_ragged_tiles_and_blocks_equal_the_dense_definition(x64, use_entropy, temperature):
    plan = plan_rows(150, 600, 8, ROWS_BUDGET)
    assert plan.tiles > 1
    assert plan.tiles * plan.tile > 150
    assert plan.blocks > 1
    assert plan.ragged
    z, codebook, w = problem(150, 600, 4, seed=5)
    options = {"temperature": temperature, "use_entropy": use_entropy, "beta": 0.4}
    ours = gradients(ibq, z, codebook, w, memory_budget_bytes=ROWS_BUDGET, **options)
    assert_same(ours, gradients(dense_ibq, z, codebook, w, **options))


def test_both_forms_give_the_same_numbers(x64):
    z, codebook, w = problem(100, 300, 6, 2.0, seed=6)
    assert plan_rows(100, 300, 8, 2**20) is not None
    assert plan_rows(100, 300, 8, 2**17) is None
    rows, streamed = (gradients(ibq, z, codebook, w, memory_budget_bytes=bytes_) for bytes_ in (2**20, 2**17))
    assert_same(rows, streamed, 1e-12)


@settings(max_examples=30)
@given(
    sizes=st.sampled_from([(1, 1, 1), (1, 9, 2), (5, 12, 3)]),
    scale=st.sampled_from([0.0, 0.1, 1.0, 6.0]) | st.floats(1e-3, 10),
    bytes_=st.sampled_from([budget(4, 2), 2**20]),
    seed=st.integers(0, 1000),
)
def test_equals_the_dense_definition_at_any_size(sizes, scale, bytes_, seed):
    with jax.enable_x64(True):
        z, codebook, w = problem(*sizes, scale, seed)
        ours = gradients(ibq, z, codebook, w, memory_budget_bytes=bytes_)
        assert_same(ours, gradients(dense_ibq, z, codebook, w), 1e-9)


def test_gradient_of_the_entropies_agrees_with_finite_differences(x64):
    z, codebook, _ = problem(4, 11, 3, 0.3)

    @jax.jit
    def loss(z, codebook):
        return ibq(z, codebook, temperature=0.05, memory_budget_bytes=budget(4, 2)).entropy_loss

    step = 1e-6
    dz, dcodebook, _ = problem(4, 11, 3, seed=7)
    up, down = (loss(z + s * dz, codebook + s * dcodebook) for s in (step, -step))
    gz, gcodebook = jax.jit(jax.grad(loss, argnums=(0, 1)))(z, codebook)
    exact = float(jnp.vdot(gz, dz) + jnp.vdot(gcodebook, dcodebook))
    assert exact == pytest.approx(float(up - down) / (2 * step), rel=1e-6)


def test_permuting_the_codes_permutes_everything(x64):
    z, codebook, w = problem(6, 23, 5)
    order = np.random.default_rng(1).permutation(23)
    (_, plain), (gz, gcodebook) = gradients(ibq, z, codebook, w, memory_budget_bytes=budget(5, 1))
    (_, moved), (mz, mcodebook) = gradients(ibq, z, codebook[order], w, memory_budget_bytes=budget(5, 1))
    assert (order[np.asarray(moved.indices)] == plain.indices).all()
    assert_same((moved.quant_loss, moved.entropy_loss), (plain.quant_loss, plain.entropy_loss))
    assert_same((mz, mcodebook), (gz, gcodebook[order]))


@pytest.mark.parametrize("bytes_", [1, budget(256, 3), 2**26])
def test_ties_go_to_the_lowest_number(bytes_):
    codebook = jnp.tile(jnp.asarray([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), (200, 1))
    z = jnp.asarray([[2.0, 1.0], [1.0, 2.0], [0.0, 0.0]])
    assert jax.jit(partial(ibq_encode, memory_budget_bytes=bytes_))(z, codebook).tolist() == [0, 1, 0]
    assert jax.jit(partial(ibq, memory_budget_bytes=bytes_))(z, codebook).indices.tolist() == [0, 1, 0]


def test_equal_codes_share_the_tokens_evenly(x64):
    out = jax.jit(partial(ibq, memory_budget_bytes=budget(8, 3)))(jnp.ones((3, 4)), jnp.ones((50, 4)))
    assert float(out.sample_entropy) == pytest.approx(math.log(50), rel=1e-12)
    assert float(out.average_entropy) == pytest.approx(-math.log(1 / 50 + 1e-5), rel=1e-12)


@pytest.mark.parametrize("bytes_", [budget(16, 2), 2**20])
@pytest.mark.parametrize("scale", [1e2, 1e6, 1e15])
def test_extreme_logits_stay_finite(scale, bytes_):
    z, codebook, w = (x.astype(jnp.float32) for x in problem(5, 40, 4, scale))
    (_, out), found = gradients(ibq, z, codebook, w, memory_budget_bytes=bytes_)
    assert np.isfinite(out.sample_entropy)
    assert np.isfinite(out.average_entropy)
    assert all(np.isfinite(g).all() for g in found)


def test_half_precision_inputs_give_float32_logits():
    z, codebook, w = problem(6, 30, 8)
    z16, codebook16 = z.astype(jnp.bfloat16), codebook.astype(jnp.bfloat16)
    z, codebook, w = (x.astype(jnp.float32) for x in (z16, codebook16, w))
    (_, half), found = gradients(ibq, z16, codebook16, w, temperature=0.1)
    (_, full), expected = gradients(ibq, z, codebook, w, temperature=0.1)
    assert half.quantized.dtype == found[0].dtype == found[1].dtype == jnp.bfloat16
    assert half.quant_loss.dtype == jnp.float32
    assert (half.indices == full.indices).all()
    assert_same((half.quant_loss, half.entropy_loss), (full.quant_loss, full.entropy_loss), 1e-6)
    assert_same(found, expected, 1e-2)


def test_leading_axes_are_free_and_evaluation_agrees_with_training(x64):
    z, codebook, _ = problem(12, 23, 5)
    quantize = jax.jit(partial(ibq, temperature=0.1))
    folded, flat = quantize(z.reshape(2, 3, 2, 5), codebook), quantize(z, codebook)
    assert folded.quantized.shape == (2, 3, 2, 5)
    assert folded.indices.shape == (2, 3, 2)
    assert (folded.indices.ravel() == flat.indices).all()
    assert (flat.quantized == codebook_lookup(flat.indices, codebook)).all()
    (_, trained), _ = gradients(ibq, z, codebook, z, temperature=0.1)
    assert_same(trained, flat, 1e-13)
    assert jax.eval_shape(ibq, z[0], codebook).indices.shape == ()


# Blocks alone, and whole rows of 64 tokens.
@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("bytes_", [2**20, 40 * 2**20])
def test_memory_does_not_grow_with_tokens_times_codes(bytes_):
    def temporary(tokens):
        shapes = (jax.ShapeDtypeStruct((tokens, 8), jnp.float32), jax.ShapeDtypeStruct((2**16, 8), jnp.float32))

        def loss(z, codebook):
            out = ibq(z, codebook, memory_budget_bytes=bytes_)
            return out.quant_loss + out.entropy_loss

        return jax.jit(jax.grad(loss, (0, 1))).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    small, large = temporary(256), temporary(1024)
    assert small < bytes_ + 3 * 2**20
    assert large < small + 2**20


def test_column_argmax_takes_the_lowest_row():
    x = jnp.zeros((192, 3)).at[70, 1].set(1.0).at[100, 1].set(1.0).at[191, 2].set(2.0)
    value, row = column_argmax(x)
    assert value.tolist() == [0, 1, 2]
    assert row.tolist() == [0, 70, 191]


def test_column_sum_takes_every_row():
    for rows in (5, 32, 33, 96):
        x = jnp.arange(3.0 * rows).reshape(rows, 3)
        assert column_sum(x).tolist() == x.sum(axis=0).tolist()


@settings(max_examples=100)
@given(st.integers(1, 5000), st.integers(1, 300000), st.sampled_from([4, 8]), st.integers(1, 2**30))
def test_rows_cover_everything_within_the_budget_or_leave_it_to_blocks(tokens, codes, itemsize, bytes_):
    plan = plan_rows(tokens, codes, itemsize, bytes_)
    if plan is None:
        # Rows of the narrowest useful tile, with the blocks beside them, would not have fitted.
        assert min(tokens, 64) * (2 * codes * 16 / 15 + 6 * 256) * itemsize > bytes_
        return
    assert plan.tile >= min(tokens, 64) or plan.tiles * plan.tile < tokens + plan.tile
    assert plan.tile * (plan.tiles - 1) < tokens <= plan.tile * plan.tiles
    assert plan.block * (plan.blocks - 1) < codes <= plan.block * plan.blocks
    assert plan.tile * plan.block * (2 * plan.blocks + 4) * itemsize <= bytes_


@settings(max_examples=60)
@given(st.integers(1, 5000), st.integers(1, 300000), st.sampled_from([4, 8]), st.integers(1, 2**26))
def test_every_plan_covers_everything_within_the_budget(tokens, codes, itemsize, bytes_):
    plan = plan_blocks(tokens, codes, itemsize, bytes_)
    assert plan.tile * plan.tiles >= tokens
    assert plan.tile * (plan.tiles - 1) < tokens
    assert 1 <= plan.block <= codes
    assert plan.block * (plan.blocks - 1) < codes <= plan.block * plan.blocks
    assert plan.block * plan.tile * itemsize * 4 <= max(bytes_, 4 * itemsize)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda z, e: ibq(z, e[:, :2]), "expected"),
        (lambda z, e: ibq_encode(z, e[0]), "expected"),
        (lambda z, e: ibq(z, e, temperature=-1.0), "must be positive"),
        (lambda z, e: ibq(z[:0], e), "at least one of each"),
        (lambda z, e: ibq(z, e, memory_budget_bytes=0), "positive number of bytes"),
    ],
)
def test_errors_say_what_was_found(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.ones((2, 3)), jnp.ones((4, 3)))
