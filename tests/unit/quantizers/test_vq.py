"""VQ against all distances at once, and codebook statistics against NumPy's counts."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from tests.support.oracles import dense_vq
from voken_jax.quantizers import (
    init_statistics,
    merge_statistics,
    perplexity,
    update_statistics,
    usage,
    vq,
    vq_encode,
)
from voken_jax.quantizers.statistics import CodebookStatistics


def problem(tokens, codes, dim, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.standard_normal((n, dim))) for n in (tokens, codes, tokens))


@pytest.mark.parametrize("legacy, l2_normalize", [(True, False), (False, True)])
@pytest.mark.parametrize("budget", [1, 8 * 4 * 300 * 3, 2**24])
def test_equals_all_distances_at_once(x64, budget, l2_normalize, legacy):
    z, codebook, w = problem(5, 700, 4)
    options = {"beta": 0.3, "legacy": legacy, "l2_normalize": l2_normalize}

    def objective(function, z, codebook, **more):
        out = function(z, codebook, **options, **more)
        return out[2] + jnp.sum(out[0] * w), out

    ours, dense = (
        jax.jit(jax.value_and_grad(lambda z, e, f=f, m=m: objective(f, z, e, **m), (0, 1), has_aux=True))(z, codebook)
        for f, m in ((vq, {"memory_budget_bytes": budget}), (dense_vq, {}))
    )
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(dense), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


def test_ties_go_to_the_lowest_number_and_codes_come_back_exactly():
    codebook = jnp.tile(jnp.asarray([[0.1, 0.7], [0.3, 0.3]]), (150, 1))
    out = vq(jnp.asarray([[0.31, 0.28], [0.0, 0.9]], jnp.bfloat16), codebook, memory_budget_bytes=4 * 4 * 256)
    assert out.indices.tolist() == [1, 0]
    assert out.quantized.dtype == jnp.bfloat16
    assert (vq(codebook, codebook).quantized == codebook).all()


def test_a_zero_code_or_token_is_no_trouble_for_angles():
    codebook = jnp.asarray([[0.0, 0.0], [1.0, 0.0]])
    assert vq_encode(jnp.asarray([[3.0, 1.0], [0.0, 0.0]]), codebook, l2_normalize=True).tolist() == [1, 0]


@settings(max_examples=12)
@given(st.lists(st.lists(st.integers(-1, 9), min_size=4, max_size=4), min_size=1, max_size=4))
def test_statistics_equal_counting(batches):
    statistics = init_statistics(8)
    for batch in batches:
        statistics = update_statistics(statistics, jnp.asarray(batch).reshape(2, 2))
    flat = np.asarray(batches).ravel()
    counts = np.bincount(flat[(flat >= 0) & (flat < 8)], minlength=8)
    assert statistics.counts.tolist() == counts.tolist()
    assert float(usage(statistics)) == pytest.approx((counts > 0).mean())
    share = counts[counts > 0] / max(counts.sum(), 1)
    expected = np.exp(-(share * np.log(share)).sum()) if counts.sum() else 0
    assert float(perplexity(statistics)) == pytest.approx(expected, rel=1e-5)


def test_statistics_merge_and_do_not_wrap_around():
    first = CodebookStatistics(jnp.asarray([1, 2**32 - 2], jnp.uint32))
    second = CodebookStatistics(jnp.asarray([2, 5], jnp.uint32))
    assert merge_statistics(first, second).counts.tolist() == [3, 2**32 - 1]


def test_errors_say_what_was_found():
    with pytest.raises(ValueError, match="found 0 codes"):
        init_statistics(0)
    with pytest.raises(ValueError, match="expected"):
        vq(jnp.ones((2, 3)), jnp.ones((4, 2)))
