"""PyTorch quantizers against dense definitions, and what streaming must not change."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from voken_torch import quantizers
from voken_torch.quantizers import blocks, codebook_lookup, ibq, ibq_encode, indices_to_codes, lfq, lfq_indices, vq
from voken_torch.quantizers.entropy import bernoulli_entropy

FEW = settings(max_examples=25, deadline=None)
SEEDS = st.integers(0, 2**31 - 1)


def normal(seed, *shape, scale=1.0, dtype=torch.float64):
    """A leaf of normal numbers."""
    values = np.random.default_rng(seed).normal(size=shape) * scale
    return torch.as_tensor(values).to(dtype).requires_grad_()


def entropies(logits):
    """Mean entropy of the rows' softmax, and that of its average over rows."""
    log_p = torch.log_softmax(logits, dim=-1)
    p = log_p.exp()
    average = p.mean(dim=0)
    return -(p * log_p).sum(dim=-1).mean(), -(average * torch.log(average + 1e-5)).sum()


def dense_lfq(x, temperature):
    codes = 2.0 * ((torch.arange(2 ** x.shape[1])[:, None] >> torch.arange(x.shape[1])) & 1).to(x.dtype) - 1
    return entropies(2 * x @ codes.t() / temperature)


def dense_ibq(z, codebook, beta, temperature):
    logits = z @ codebook.t()
    p, winner = logits.softmax(dim=-1), logits.argmax(dim=-1)
    h = torch.nn.functional.one_hot(winner, codebook.shape[0]).to(z.dtype)
    z_q, z_h = (h - p.detach() + p) @ codebook, h @ codebook
    loss = (z_q - z).square().mean() + (z_h.detach() - z).square().mean()
    return z_q, winner, loss + beta * (z_h - z.detach()).square().mean(), *entropies(logits / temperature)


def assert_gradients(ours, dense, leaves, tolerance=1e-8):
    for found, expected in zip(torch.autograd.grad(ours, leaves), torch.autograd.grad(dense, leaves)):
        # What is left of a cancellation in the dense gradient is its own rounding.
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * expected.abs().max().item() + 1e-10)


@FEW
@given(SEEDS, st.integers(1, 40), st.integers(1, 9), st.sampled_from([16, 64, 1000, 2**20]), st.floats(1e-3, 1.0))
def test_lfq_is_the_dense_softmax(seed, tokens, dim, budget, scale):
    x, temperature = normal(seed, tokens, dim, scale=scale), 0.05
    out = lfq(x, temperature=temperature, block_bytes=max(budget, 32))
    sample, codebook = dense_lfq(x, temperature)
    torch.testing.assert_close(out.per_sample_entropy, sample, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(out.codebook_entropy, codebook, rtol=1e-9, atol=1e-9)
    assert_gradients(out.aux_loss, sample - codebook, (x,), 1e-7)


@FEW
@given(
    SEEDS, st.integers(1, 30), st.integers(1, 70), st.integers(1, 6), st.sampled_from([1, 200, 3000, 2**24]),
    st.sampled_from([0.1, 1.0, 4.0]),
)  # fmt: skip
def test_ibq_is_the_dense_softmax(seed, tokens, codes, dim, budget, scale):
    z, codebook = normal(seed, tokens, dim, scale=scale), normal(seed + 1, codes, dim)
    w = normal(seed + 2, tokens, dim).detach()
    out = ibq(z, codebook, beta=0.3, temperature=0.05, memory_budget_bytes=budget)
    z_q, winner, loss, sample, average = dense_ibq(z, codebook, 0.3, 0.05)
    assert torch.equal(out.indices.long(), winner)
    for found, expected in zip(out[:5:2], (z_q, loss, average)):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(out.sample_entropy, sample, rtol=1e-8, atol=1e-9)
    ours = out.quant_loss + 0.7 * out.sample_entropy - 0.4 * out.average_entropy + (out.quantized * w).sum()
    dense = loss + 0.7 * sample - 0.4 * average + (z_q * w).sum()
    assert_gradients(ours, dense, (z, codebook), 1e-7)


@FEW
@given(SEEDS, st.integers(65, 140), st.integers(300, 700), st.sampled_from([0.02, 3.0]), st.booleans())
def test_whole_rows_in_tiles_are_the_dense_softmax(seed, tokens, codes, temperature, use_entropy):
    budget = 8 * 70 * (2 * codes + 6 * 256)
    plan = blocks.plan_rows(tokens, codes, 8, budget, torch.device("cpu"))
    # 300 codes and blocks as narrow as they get leave room for 109 rows.
    assert plan.tile < tokens or tokens < 110
    assert plan.block < codes
    z, codebook = normal(seed, tokens, 3), normal(seed + 1, codes, 3)
    w = normal(seed + 2, tokens, 3).detach()
    out = ibq(z, codebook, temperature=temperature, use_entropy=use_entropy, memory_budget_bytes=budget)
    z_q, winner, loss, sample, average = dense_ibq(z, codebook, 0.25, temperature)
    assert torch.equal(out.indices.long(), winner)
    ours, dense = out.quant_loss + (out.quantized * w).sum(), loss + (z_q * w).sum()
    if use_entropy:
        ours, dense = ours + 0.7 * out.sample_entropy - 0.4 * out.average_entropy, dense + 0.7 * sample - 0.4 * average
    torch.testing.assert_close(ours, dense, rtol=1e-9, atol=1e-9)
    assert_gradients(ours, dense, (z, codebook), 1e-8)


def test_both_forms_give_the_same_numbers():
    z, codebook = normal(0, 100, 6, scale=2.0), normal(1, 300, 6)
    found = []
    for budget in (2**20, 2**17):
        found.append(blocks.plan_rows(100, 300, 8, budget, z.device) is None)
        out = ibq(z, codebook, memory_budget_bytes=budget)
        total = out.quant_loss + out.entropy_loss + out.quantized.sum()
        found.append((out.indices, total, *torch.autograd.grad(total, (z, codebook))))
    assert found[::2] == [False, True]
    torch.testing.assert_close(found[1], found[3], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rows", ["single shares", "some rows", "all rows"])
@pytest.mark.parametrize("budget", [2**12, 2**14, 2**24])
def test_leaving_rows_out_changes_nothing(monkeypatch, rows, budget):
    # Codes in clusters: most blocks are nothing to most tokens at this temperature.
    codebook = normal(1, 512, 4, scale=0.1).detach() + 5 * normal(2, 8, 4).detach().repeat_interleave(64, dim=0)
    z, codebook = normal(0, 64, 4, scale=3.0), codebook.requires_grad_()
    monkeypatch.setattr(blocks, "_CACHED_BYTES", 64 * 64 * 8)
    monkeypatch.setattr(blocks, "_LEAST_BLOCK", 64)
    monkeypatch.setattr("voken_torch.quantizers.rows._FEW", 1 if rows == "single shares" else 2**40)
    if rows == "all rows":
        for form in ("streaming", "rows"):
            monkeypatch.setattr(f"voken_torch.quantizers.{form}.active_rows", lambda exponents: None)
    out = ibq(z, codebook, temperature=0.01, memory_budget_bytes=budget)
    sample, average = dense_ibq(z, codebook, 0.25, 0.01)[3:]
    torch.testing.assert_close(out.sample_entropy, sample, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(out.average_entropy, average, rtol=1e-9, atol=1e-12)
    assert_gradients(out.entropy_loss, sample - average, (z, codebook), 1e-7)


@FEW
@given(SEEDS, st.booleans(), st.booleans(), st.sampled_from([1, 500, 2**24]))
def test_vq_is_the_nearest_code(seed, legacy, l2_normalize, budget):
    z, codebook = normal(seed, 2, 5, 3), normal(seed + 1, 67, 3)
    out = vq(z, codebook, legacy=legacy, l2_normalize=l2_normalize, memory_budget_bytes=budget)
    a, b = (torch.nn.functional.normalize(v, dim=-1) if l2_normalize else v for v in (z, codebook))
    assert torch.equal(out.indices.long(), torch.cdist(a, b.expand(2, -1, -1)).argmin(dim=-1))
    torch.testing.assert_close(out.quantized, codebook[out.indices.long()].detach(), rtol=0, atol=0)
    (dz,) = torch.autograd.grad(out.quantized.sum(), z, retain_graph=True)
    assert torch.equal(dz, torch.ones_like(z))
    side = "commitment" if not legacy else "codebook_loss"
    other = "codebook_loss" if not legacy else "commitment"
    torch.testing.assert_close(out.loss, 0.25 * getattr(out, side) + getattr(out, other))


@pytest.mark.parametrize("budget", [1, 2**10, 2**24])
def test_ties_go_to_the_lowest_code(budget):
    codebook = torch.zeros(300, 2)
    codebook[130:] = 1.0
    z = torch.ones(3, 2)
    assert ibq_encode(z, codebook, memory_budget_bytes=budget).tolist() == [130] * 3
    assert ibq(z, codebook, memory_budget_bytes=budget).indices.tolist() == [130] * 3
    assert vq(z, codebook, memory_budget_bytes=budget).indices.tolist() == [130] * 3
    assert ibq_encode(-z, codebook, memory_budget_bytes=budget).tolist() == [0] * 3


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e3, 1e15])
def test_extreme_logits_stay_finite(scale):
    z, codebook = normal(0, 7, 4, scale=scale, dtype=torch.float32), normal(1, 33, 4, dtype=torch.float32)
    out = ibq(z, codebook)
    gradients = torch.autograd.grad(out.entropy_loss + out.quantized.sum(), (z, codebook))
    x = normal(2, 7, 4, scale=scale, dtype=torch.float32)
    aux = lfq(x).aux_loss
    values = [*gradients, *torch.autograd.grad(aux, x), out.entropy_loss, aux]
    assert all(torch.isfinite(value).all() for value in values)


def test_equal_codes_share_everything():
    z, codebook = normal(0, 4, 3), torch.ones(16, 3, dtype=torch.float64, requires_grad=True)
    out = ibq(z, codebook)
    assert out.indices.tolist() == [0] * 4
    assert out.sample_entropy.item() == pytest.approx(np.log(16))
    assert out.average_entropy.item() == pytest.approx(np.log(16), abs=1e-3)
    (dz,) = torch.autograd.grad(out.quantized.sum(), z)
    torch.testing.assert_close(dz, torch.zeros_like(dz), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_inputs_have_float32_logits(dtype):
    z, codebook = normal(0, 6, 4, dtype=dtype), normal(1, 40, 4, dtype=dtype)
    out, wide = ibq(z, codebook), ibq(z.float(), codebook.float())
    assert out.quantized.dtype == dtype
    assert out.quant_loss.dtype == torch.float32
    assert torch.equal(out.indices, wide.indices)
    torch.testing.assert_close(out.entropy_loss, wide.entropy_loss, rtol=1e-6, atol=1e-6)
    grads = torch.autograd.grad(out.quant_loss + out.quantized.float().sum(), (z, codebook))
    assert {g.dtype for g in grads} == {dtype}
    x = normal(2, 5, 6, dtype=dtype)
    assert lfq(x).quantized.dtype == dtype
    assert lfq(x).aux_loss.dtype == torch.float32


def test_autocast_does_not_reach_inside():
    z, codebook = normal(0, 6, 8, dtype=torch.float32), normal(1, 40, 8, dtype=torch.float32)
    x = normal(2, 6, 8, scale=0.01, dtype=torch.float32)

    def everything():
        out = ibq(z, codebook)
        total = out.quant_loss + out.entropy_loss + lfq(x).aux_loss
        return [total, *torch.autograd.grad(total, (z, codebook, x))]

    expected = everything()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = everything()
    for a, b in zip(found, expected):
        assert torch.equal(a, b)


def test_gradients_agree_with_finite_differences():
    x = normal(0, 3, 4, scale=0.02)
    assert torch.autograd.gradcheck(lambda v: lfq(v, temperature=0.1).aux_loss + lfq(v).commitment, x)
    assert torch.autograd.gradcheck(bernoulli_entropy, normal(1, 5))
    z, codebook = normal(2, 3, 4), normal(3, 9, 4)
    # The hard value has no finite differences; the entropies have.
    assert torch.autograd.gradcheck(lambda a, b: ibq(a, b, temperature=0.5).entropy_loss, (z, codebook))


def test_without_gradients_nothing_is_kept():
    z, codebook = normal(0, 3, 4), normal(1, 9, 4)
    with torch.no_grad():
        quiet = ibq(z, codebook)
    loud = ibq(z, codebook)
    assert not quiet.quantized.requires_grad
    for a, b in zip(quiet, loud):
        torch.testing.assert_close(a, b.detach())


def test_indices_and_codes():
    x = normal(0, 2, 3, 6)
    indices = lfq_indices(x)
    assert indices.dtype == torch.int32
    assert torch.equal(indices_to_codes(indices, 6), torch.where(x > 0, 1.0, -1.0).float())
    pre, post = quantizers.split_indices(indices, (2, 4))
    assert torch.equal(quantizers.join_indices(pre, post, (2, 4)), indices)
    codebook = normal(1, 5, 2).detach()
    assert torch.equal(codebook_lookup(torch.tensor([4, 0]), codebook), codebook[[4, 0]])


def test_statistics_over_batches():
    first = quantizers.update_statistics(quantizers.init_statistics(8), torch.tensor([[1, 1], [2, -1]]))
    both = quantizers.merge_statistics(first, quantizers.update_statistics(first, torch.tensor([8, 3])))
    assert both.counts.tolist() == [0, 4, 2, 1, 0, 0, 0, 0]
    assert quantizers.usage(both).item() == 3 / 8
    share = np.array([4, 2, 1]) / 7
    assert quantizers.perplexity(both).item() == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-6)
    assert quantizers.perplexity(quantizers.init_statistics(8)) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ibq(torch.zeros(2, 3), torch.zeros(4, 5)), r"z of shape \(2, 3\) and a codebook of shape \(4, 5\)"),
        (lambda: ibq(torch.zeros(0, 3), torch.zeros(4, 3)), "found 0 tokens and 4 codes"),
        (lambda: ibq(torch.zeros(2, 3), torch.zeros(4, 3), temperature=0), "temperature is 0"),
        (lambda: ibq(torch.zeros(2, 3), torch.zeros(4, 3), memory_budget_bytes=0), "memory_budget_bytes is 0"),
        (lambda: lfq(torch.zeros(2, 32)), "found 32 channels"),
        (lambda: lfq(torch.zeros(0, 3)), "no tokens to quantize"),
        (lambda: lfq(torch.zeros(2, 3), temperature=-1), "temperature is -1"),
        (lambda: lfq(torch.zeros(2, 3), block_bytes=8), "room for at least 4 values"),
        (lambda: quantizers.split_indices(torch.zeros(1, dtype=torch.int32), (0, 4)), "two positive widths"),
        (lambda: quantizers.init_statistics(0), "found 0 codes"),
    ],
)
def test_what_cannot_be_quantized_says_why(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_blocks_stay_within_the_budget():
    for tokens, codes, budget in ((512, 2**18, 2**26), (65536, 2**14, 2**24), (7, 5, 2**24), (100, 1000, 1)):
        for kind in ("cpu", "meta"):
            plan = blocks.plan_blocks(tokens, codes, 4, budget, torch.device(kind))
            assert plan.tile * plan.block * 4 * 3 <= max(budget, 12)
            assert sum(s.stop - s.start for s in plan.blocks()) == codes
            assert sum(s.stop - s.start for s in plan.tiles()) == tokens
            plan = blocks.plan_rows(tokens, codes, 4, budget, torch.device(kind))
            assert plan is None or plan.tile >= min(tokens, 64) or len(list(plan.tiles())) == -(-tokens // plan.tile)
            assert plan is None or plan.tile * (2 * codes + 4 * plan.block) * 4 <= budget
