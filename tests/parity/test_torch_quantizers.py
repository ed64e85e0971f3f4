"""PyTorch LFQ, IBQ and VQ: values, ids, losses and gradients, streamed in one block and in many."""

from unittest import mock

import numpy as np
import pytest
import torch

from tests.support import objectives
from tests.support.golden_cases import (
    FORWARD_FLOAT32,
    GRADIENT_FLOAT32,
    assert_close,
    channels_first,
    channels_last,
    uniform,
    weight,
)
from voken_torch.quantizers import ibq, join_indices, lfq, split_indices, vq

KINDS = ["lfq", "lfq_factorized", "ibq", "vq"]

SMALL_BUDGET = 12_000
"""Bytes; cuts even the small cases into several blocks of codes or tiles of tokens."""
TORCH_FUNCTIONS = {"mean": torch.mean, "sum": torch.sum, "abs": torch.abs, "sqrt": torch.sqrt}


def evaluate(text, **arguments):
    """A golden objective over tensors."""
    with mock.patch.dict(objectives._FUNCTIONS, TORCH_FUNCTIONS):
        return objectives.evaluate(text, **arguments)


def kinds(*names):
    """Cases of these kinds alone."""

    def mark(function):
        function.kinds = names
        return function

    return mark


@pytest.fixture(params=["float64", "float32"])
def precision(request):
    return request.param


@pytest.fixture(params=["one block", "many blocks"])
def budget(request):
    return {"one block": 2**26, "many blocks": SMALL_BUDGET}[request.param]


def tensor(array, precision, grad=False):
    """A tensor of this precision, a leaf with a gradient if asked."""
    return torch.tensor(np.asarray(array), dtype=getattr(torch, precision), requires_grad=grad)


def codebook_of(case, precision):
    shape = (case.config["n_embed"], case.config["embed_dim"])
    return tensor(weight("quantize.embedding.weight", shape, case.seed), precision, grad=True)


def tokens_of(case, precision):
    """Tokens and the weights of the sum term, channels last."""
    sum_weights = channels_last(uniform(case.config["input"]["shape"], case.seed, "w"))
    return tensor(channels_last(case.input()), precision, grad=True), tensor(sum_weights, precision)


def assert_array(actual, expected, what, float32):
    actual = actual.detach().numpy()
    assert_close(channels_first(actual) if actual.ndim == 4 else actual, expected, what, float32)


def tolerances(precision):
    """(forward, gradient); None stands for float64."""
    return (FORWARD_FLOAT32, GRADIENT_FLOAT32) if precision == "float32" else (None, None)


def assert_ids(case, indices, scores, precision):
    """Ids agree; in float32 another id passes where its score is within rounding of the best one."""
    indices, expected = indices.numpy().ravel(), case.arrays["out/indices"].ravel()
    rows = np.flatnonzero(indices != expected)
    if precision == "float64":
        assert rows.size == 0, f"ids differ at tokens {rows}"
    scores = scores.detach().double().numpy()
    gap = np.abs(scores[rows, indices[rows]] - scores[rows, expected[rows]])
    assert np.all(gap <= 1e-5 * np.abs(scores[rows]).max(axis=1, initial=0.0)), f"ids differ at tokens {rows}"


@kinds("lfq")
def test_lfq(case, precision, budget):
    spec, (x, w) = case.config, tokens_of(case, precision)
    sample_weight, batch_weight = spec["weights"]
    out = lfq(x, sample_weight=sample_weight, batch_weight=batch_weight, block_bytes=budget)
    forward, gradient = tolerances(precision)
    assert_array(out.quantized, case.arrays["out/quantized"], "quantized", forward)
    np.testing.assert_array_equal(out.indices.numpy().ravel(), case.arrays["out/indices"].ravel())
    assert_array(out.aux_loss, case.arrays["out/aux"], "aux", forward)
    assert_array(out.per_sample_entropy, case.arrays["out/per_sample_entropy"], "per-sample entropy", forward)
    assert_array(out.codebook_entropy, case.arrays["out/codebook_entropy"], "codebook entropy", forward)
    assert_array(out.commitment, case.arrays["out/commitment"], "commitment", forward)
    named = {"aux": out.aux_loss, "commit": out.commitment, "quantized": out.quantized}
    for key, sum_weights in (("grad/x", w), ("grad/x_losses_only", torch.zeros_like(w))):
        objective = evaluate(spec["objective"], w=sum_weights, **named)
        (found,) = torch.autograd.grad(objective, x, retain_graph=True)
        assert_array(found, case.arrays[key], key, gradient)


@kinds("lfq_factorized")
def test_lfq_factorized(case, precision):
    bits = tuple(case.config["bits"])
    out = lfq(tensor(channels_last(case.input()), precision), with_entropy=False)
    pre, post = split_indices(out.indices, bits)
    np.testing.assert_array_equal(pre.numpy().ravel(), case.arrays["out/indices_pre"].ravel())
    np.testing.assert_array_equal(post.numpy().ravel(), case.arrays["out/indices_post"].ravel())
    assert torch.equal(join_indices(pre, post, bits), out.indices)
    assert_array(out.quantized, case.arrays["out/quantized"], "quantized", tolerances(precision)[0])


@kinds("ibq")
def test_ibq(case, precision, budget):
    spec, (z, w), codebook = case.config, tokens_of(case, precision), codebook_of(case, precision)
    sample_weight, batch_weight = spec["weights"]
    entropy = spec["use_entropy_loss"]
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
    grad_z, grad_codebook = torch.autograd.grad(evaluate(spec["objective"], optional=entropy, **named), (z, codebook))
    forward, gradient = tolerances(precision)
    assert_ids(case, out.indices, z.reshape(-1, z.shape[-1]) @ codebook.t(), precision)
    assert_array(out.quantized, case.arrays["out/z_q"], "z_q", forward)
    assert_array(out.quant_loss, case.arrays["out/quant_loss"], "quant_loss", forward)
    if entropy:
        assert_array(out.sample_entropy, case.arrays["out/sample_entropy"], "sample entropy", forward)
        assert_array(out.average_entropy, case.arrays["out/avg_entropy"], "average entropy", forward)
        assert_array(out.entropy_loss, case.arrays["out/entropy_loss"], "entropy loss", forward)
    assert_array(grad_z, case.arrays["grad/z"], "gradient of z", gradient)
    assert_array(grad_codebook, case.arrays["grad/codebook"], "gradient of the codebook", gradient)


@kinds("vq")
def test_vq(case, precision, budget):
    spec, (z, w), codebook = case.config, tokens_of(case, precision), codebook_of(case, precision)
    out = vq(
        z,
        codebook,
        beta=spec["beta"],
        legacy=spec["legacy"],
        l2_normalize=spec["l2_normalize"],
        memory_budget_bytes=budget,
    )
    objective = evaluate(spec["objective"], loss=out.loss, z_q=out.quantized, w=w)
    grad_z, grad_codebook = torch.autograd.grad(objective, (z, codebook))
    codes = codebook / codebook.norm(dim=1, keepdim=True) if spec["l2_normalize"] else codebook
    scores = z.reshape(-1, z.shape[-1]) @ codes.t() - codes.square().sum(dim=1) / 2
    forward, gradient = tolerances(precision)
    assert_ids(case, out.indices, scores, precision)
    assert_array(out.quantized, case.arrays["out/z_q"], "z_q", forward)
    assert_array(out.loss, case.arrays["out/loss"], "loss", forward)
    assert_array(grad_z, case.arrays["grad/z"], "gradient of z", gradient)
    assert_array(grad_codebook, case.arrays["grad/codebook"], "gradient of the codebook", gradient)
