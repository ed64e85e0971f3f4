"""LFQ, IBQ and VQ: values, ids, losses and gradients, streamed in one block and in many."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.golden_cases import (
    FORWARD_FLOAT32,
    GRADIENT_FLOAT32,
    assert_close,
    channels_first,
    channels_last,
    uniform,
    weight,
)
from tests.support.objectives import evaluate
from voken_jax.quantizers import ibq, join_indices, lfq, split_indices, vq

KINDS = ["lfq", "lfq_factorized", "ibq", "vq"]

SMALL_BUDGET = 12_000
"""Bytes; cuts even the small cases into several blocks of codes or tiles of tokens."""


def kinds(*names):
    """Cases of these kinds alone."""

    def mark(function):
        function.kinds = names
        return function

    return mark


@pytest.fixture(params=["one block", "many blocks"])
def budget(request):
    return {"one block": 2**26, "many blocks": SMALL_BUDGET}[request.param]


def codebook_of(case, dtype):
    shape = (case.config["n_embed"], case.config["embed_dim"])
    return jnp.asarray(weight("quantize.embedding.weight", shape, case.seed), dtype)


def tokens_of(case, dtype):
    """Tokens and the weights of the sum term, channels last."""
    shape = case.config["input"]["shape"]
    sum_weights = jnp.asarray(channels_last(uniform(shape, case.seed, "w")), dtype)
    return jnp.asarray(channels_last(case.input()), dtype), sum_weights


def forward_tolerance(precision):
    return FORWARD_FLOAT32 if precision == "float32" else None


def gradient_tolerance(precision):
    return GRADIENT_FLOAT32 if precision == "float32" else None


def assert_ids(case, indices, scores, precision):
    """Ids agree; in float32 another id passes where its score is within rounding of the best one."""
    indices, expected = np.asarray(indices).ravel(), case.arrays["out/indices"].ravel()
    rows = np.flatnonzero(indices != expected)
    if precision == "float64":
        assert rows.size == 0, f"ids differ at tokens {rows}"
    scores = np.asarray(scores, np.float64)
    gap = np.abs(scores[rows, indices[rows]] - scores[rows, expected[rows]])
    assert np.all(gap <= 1e-5 * np.abs(scores[rows]).max(axis=1, initial=0.0)), f"ids differ at tokens {rows}"


@kinds("lfq")
def test_lfq(case, precision, budget):
    spec, (x, w) = case.config, tokens_of(case, precision)
    sample_weight, batch_weight = spec["weights"]

    @jax.jit
    def run(x):
        def terms(x):
            out = lfq(x, sample_weight=sample_weight, batch_weight=batch_weight, block_bytes=budget)
            return out, {"aux": out.aux_loss, "commit": out.commitment, "quantized": out.quantized}

        def objective(x, sum_weights):
            out, named = terms(x)
            return evaluate(spec["objective"], w=sum_weights, **named), out

        grads, out = jax.grad(objective, has_aux=True)(x, w)
        return out, grads, jax.grad(objective, has_aux=True)(x, jnp.zeros_like(w))[0]

    out, grads, losses_only = run(x)
    tolerance = forward_tolerance(precision)
    assert_close(channels_first(out.quantized), case.arrays["out/quantized"], "quantized", tolerance)
    np.testing.assert_array_equal(np.asarray(out.indices).ravel(), case.arrays["out/indices"].ravel())
    assert_close(out.aux_loss, case.arrays["out/aux"], "aux", tolerance)
    assert_close(out.per_sample_entropy, case.arrays["out/per_sample_entropy"], "per-sample entropy", tolerance)
    assert_close(out.codebook_entropy, case.arrays["out/codebook_entropy"], "codebook entropy", tolerance)
    assert_close(out.commitment, case.arrays["out/commitment"], "commitment", tolerance)
    tolerance = gradient_tolerance(precision)
    assert_close(channels_first(grads), case.arrays["grad/x"], "gradient", tolerance)
    assert_close(channels_first(losses_only), case.arrays["grad/x_losses_only"], "gradient of the losses", tolerance)


@kinds("lfq_factorized")
def test_lfq_factorized(case, precision):
    bits = tuple(case.config["bits"])
    x = jnp.asarray(channels_last(case.input()), precision)
    out = lfq(x, with_entropy=False)
    pre, post = split_indices(out.indices, bits)
    np.testing.assert_array_equal(np.asarray(pre).ravel(), case.arrays["out/indices_pre"].ravel())
    np.testing.assert_array_equal(np.asarray(post).ravel(), case.arrays["out/indices_post"].ravel())
    np.testing.assert_array_equal(join_indices(pre, post, bits), out.indices)
    assert_close(channels_first(out.quantized), case.arrays["out/quantized"], "quantized", forward_tolerance(precision))


@kinds("ibq")
def test_ibq(case, precision, budget):
    spec, (z, w), codebook = case.config, tokens_of(case, precision), codebook_of(case, precision)
    sample_weight, batch_weight = spec["weights"]
    entropy = spec["use_entropy_loss"]

    @jax.jit
    def run(z, codebook):
        def objective(z, codebook):
            out = ibq(
                z,
                codebook,
                beta=spec["beta"],
                use_entropy=entropy,
                temperature=spec["entropy_temperature"],
                sample_weight=sample_weight,
                batch_weight=batch_weight,
                memory_budget_bytes=budget,
            )
            named = {"quant_loss": out.quant_loss, "entropy_loss": out.entropy_loss, "z_q": out.quantized, "w": w}
            return evaluate(spec["objective"], optional=entropy, **named), out

        return jax.grad(objective, argnums=(0, 1), has_aux=True)(z, codebook)

    (grad_z, grad_codebook), out = run(z, codebook)
    tolerance = forward_tolerance(precision)
    assert_ids(case, out.indices, z.reshape(-1, z.shape[-1]) @ codebook.T, precision)
    assert_close(channels_first(out.quantized), case.arrays["out/z_q"], "z_q", tolerance)
    assert_close(out.quant_loss, case.arrays["out/quant_loss"], "quant_loss", tolerance)
    if entropy:
        assert_close(out.sample_entropy, case.arrays["out/sample_entropy"], "sample entropy", tolerance)
        assert_close(out.average_entropy, case.arrays["out/avg_entropy"], "average entropy", tolerance)
        assert_close(out.entropy_loss, case.arrays["out/entropy_loss"], "entropy loss", tolerance)
    tolerance = gradient_tolerance(precision)
    assert_close(channels_first(grad_z), case.arrays["grad/z"], "gradient of z", tolerance)
    assert_close(grad_codebook, case.arrays["grad/codebook"], "gradient of the codebook", tolerance)


@kinds("vq")
def test_vq(case, precision, budget):
    spec, (z, w), codebook = case.config, tokens_of(case, precision), codebook_of(case, precision)

    @jax.jit
    def run(z, codebook):
        def objective(z, codebook):
            out = vq(
                z,
                codebook,
                beta=spec["beta"],
                legacy=spec["legacy"],
                l2_normalize=spec["l2_normalize"],
                memory_budget_bytes=budget,
            )
            return evaluate(spec["objective"], loss=out.loss, z_q=out.quantized, w=w), out

        return jax.grad(objective, argnums=(0, 1), has_aux=True)(z, codebook)

    (grad_z, grad_codebook), out = run(z, codebook)
    searched, codes = z.reshape(-1, z.shape[-1]), codebook
    if spec["l2_normalize"]:
        codes = codes / jnp.linalg.norm(codes, axis=1, keepdims=True)
    scores = searched @ codes.T - jnp.square(codes).sum(axis=1) / 2
    assert_ids(case, out.indices, scores, precision)
    assert_close(channels_first(out.quantized), case.arrays["out/z_q"], "z_q", forward_tolerance(precision))
    assert_close(out.loss, case.arrays["out/loss"], "loss", forward_tolerance(precision))
    tolerance = gradient_tolerance(precision)
    assert_close(channels_first(grad_z), case.arrays["grad/z"], "gradient of z", tolerance)
    assert_close(grad_codebook, case.arrays["grad/codebook"], "gradient of the codebook", tolerance)
