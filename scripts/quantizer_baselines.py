"""Define the contenders of `benchmark_quantizers.py`: ours, dense PyTorch, dense JAX, and exact float64 gradients.

The dense versions are written as the literature writes them: clearly, with arrays of tokens x codes.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

TEMPERATURE = 0.01
BETA = 0.25
ENTROPY_WEIGHT = 0.05


@dataclass(frozen=True)
class Case:
    """One measurement: `kind` lfq or ibq, `implementation` a key of IMPLEMENTATIONS."""

    kind: str
    implementation: str
    codes: int
    dim: int
    tokens: int
    repeats: int = 3
    compare: bool = False

    @property
    def label(self) -> str:
        """Name of the problem, whoever solves it."""
        return f"{self.kind} K={self.codes} D={self.dim} N={self.tokens}"


def make_inputs(case: Case) -> list[np.ndarray]:
    """Seeded float32 inputs: tokens and, for ibq, the upstream gradient of the quantized values and a codebook."""
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((case.tokens, case.dim), np.float32)
    if case.kind == "lfq":
        # Small enough that the signs are not all decided, so that every gradient is there to be compared.
        return [np.float32(0.01) * tokens]
    upstream = rng.standard_normal((case.tokens, case.dim), np.float32) / np.float32(case.tokens)
    codebook = rng.standard_normal((case.codes, case.dim), np.float32) / np.float32(np.sqrt(case.dim))
    return [tokens, upstream, codebook]


# A runner takes a case and its inputs, prepares everything at full size and returns (call, bytes of the compiled
# program's temporaries or None). call() computes the loss and returns the gradients of the tokens and of the codes.
Prepared = tuple[Callable[[], list[Any]], int | None]
Runner = Callable[[Case, list[np.ndarray]], Prepared]


def streaming_losses(lfq: Any, ibq: Any) -> tuple[Any, Any]:
    """The measured losses of our quantizers, whose API is one in both frameworks."""

    def lfq_loss(x: Any) -> Any:
        out = lfq(x, temperature=TEMPERATURE)
        return out.aux_loss + BETA * out.commitment

    def ibq_loss(z: Any, w: Any, codebook: Any) -> Any:
        out = ibq(z, codebook, beta=BETA, temperature=TEMPERATURE)
        return out.quant_loss + ENTROPY_WEIGHT * out.entropy_loss + (out.quantized * w).sum()

    return lfq_loss, ibq_loss


def run_ours_jax(case: Case, inputs: list[np.ndarray]) -> Prepared:
    from voken_jax.quantizers import ibq, lfq

    return compile_jax(case, streaming_losses(lfq, ibq), inputs)


def run_ours_torch(case: Case, inputs: list[np.ndarray]) -> Prepared:
    from voken_torch.quantizers import ibq, lfq

    return prepare_torch(case, streaming_losses(lfq, ibq), inputs)


def run_dense_jax(case: Case, inputs: list[np.ndarray]) -> Prepared:
    import jax
    import jax.numpy as jnp

    stop = jax.lax.stop_gradient

    def entropies(logits: Any) -> Any:
        p, log_p = jax.nn.softmax(logits / TEMPERATURE), jax.nn.log_softmax(logits / TEMPERATURE)
        average = p.mean(axis=0)
        return -(p * log_p).sum(axis=-1).mean() + (average * jnp.log(average + 1e-5)).sum()

    def lfq_loss(x: Any) -> Any:
        bits = (jnp.arange(case.codes)[:, None] >> jnp.arange(case.dim)) & 1
        q = jnp.where(x > 0, 1.0, -1.0)
        return entropies(2 * x @ (2.0 * bits - 1).T) + BETA * jnp.mean((x - q) ** 2)

    def ibq_loss(z: Any, w: Any, codebook: Any) -> Any:
        logits = z @ codebook.T
        soft = jax.nn.softmax(logits)
        hard = jax.nn.one_hot(logits.argmax(axis=-1), case.codes)
        z_q, z_h = (hard - stop(soft) + soft) @ codebook, hard @ codebook
        loss = jnp.mean((z_q - z) ** 2) + jnp.mean((stop(z_h) - z) ** 2) + BETA * jnp.mean((z_h - stop(z)) ** 2)
        return loss + ENTROPY_WEIGHT * entropies(logits) + (z_q * w).sum()

    return compile_jax(case, (lfq_loss, ibq_loss), inputs)


def compile_jax(case: Case, losses: tuple[Any, Any], inputs: list[np.ndarray]) -> Prepared:
    """Compile loss and gradients ahead of time, so that the measured call only runs."""
    import jax

    loss, leaves = (losses[0], (0,)) if case.kind == "lfq" else (losses[1], (0, 2))
    arrays = [jax.device_put(x) for x in inputs]
    compiled = jax.jit(jax.value_and_grad(loss, argnums=leaves)).lower(*arrays).compile()
    analysis = compiled.memory_analysis()
    temporary = None if analysis is None else int(analysis.temp_size_in_bytes)
    return lambda: jax.block_until_ready(compiled(*arrays)[1]), temporary


def dense_entropies(logits: Any) -> Any:
    """Sample entropy minus entropy of the average, of a torch array of tokens x codes."""
    import torch

    logits = logits / TEMPERATURE
    p, log_p = torch.softmax(logits, dim=-1), torch.log_softmax(logits, dim=-1)
    average = p.mean(dim=0)
    return -(p * log_p).sum(dim=-1).mean() + (average * torch.log(average + 1e-5)).sum()


def run_dense_torch(case: Case, inputs: list[np.ndarray]) -> Prepared:
    import torch

    def lfq_loss(x: Any) -> Any:
        bits = (torch.arange(case.codes)[:, None] >> torch.arange(case.dim)) & 1
        q = torch.where(x > 0, 1.0, -1.0)
        return dense_entropies(2 * x @ (2.0 * bits - 1).T) + BETA * torch.mean((x - q) ** 2)

    def ibq_loss(z: Any, w: Any, codebook: Any) -> Any:
        # Feature maps, channels first: (B, D, h, w) tokens and (B, K, h, w) logits.
        side = min(16, math.isqrt(case.tokens))
        z, w = (t.view(-1, side, side, case.dim).permute(0, 3, 1, 2) for t in (z, w))
        logits = torch.einsum("bdhw,kd->bkhw", z, codebook)
        soft = torch.softmax(logits, dim=1)
        hard = torch.zeros_like(soft).scatter_(1, logits.argmax(dim=1, keepdim=True), 1.0)
        one_hot = hard - soft.detach() + soft
        z_q, z_h = (torch.einsum("bkhw,kd->bdhw", assignment, codebook) for assignment in (one_hot, hard))
        loss = torch.mean((z_q - z) ** 2) + torch.mean((z_h.detach() - z) ** 2)
        loss = loss + BETA * torch.mean((z_h - z.detach()) ** 2)
        return loss + ENTROPY_WEIGHT * dense_entropies(logits.permute(0, 2, 3, 1).flatten(0, 2)) + (z_q * w).sum()

    return prepare_torch(case, (lfq_loss, ibq_loss), inputs)


def run_flat_torch(case: Case, inputs: list[np.ndarray]) -> Prepared:
    """Dense as well, but leaner than the literature: tokens in rows, as matrix products like them best."""
    import torch

    def ibq_loss(z: Any, w: Any, codebook: Any) -> Any:
        logits = z @ codebook.T
        soft = torch.softmax(logits, dim=-1)
        hard = torch.zeros_like(soft).scatter_(1, logits.argmax(dim=-1, keepdim=True), 1.0)
        z_q, z_h = (hard - soft.detach() + soft) @ codebook, hard @ codebook
        loss = torch.mean((z_q - z) ** 2) + torch.mean((z_h.detach() - z) ** 2)
        loss = loss + BETA * torch.mean((z_h - z.detach()) ** 2)
        return loss + ENTROPY_WEIGHT * dense_entropies(logits) + (z_q * w).sum()

    return prepare_torch(case, (None, ibq_loss), inputs)


def prepare_torch(case: Case, losses: tuple[Any, Any], inputs: list[np.ndarray]) -> Prepared:
    """Loss and gradients, on as many threads as there are cores."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    tensors = [torch.from_numpy(array) for array in inputs]
    loss, leaves = (losses[0], [0]) if case.kind == "lfq" else (losses[1], [0, 2])
    watched = [tensors[i].requires_grad_() for i in leaves]
    return lambda: list(torch.autograd.grad(loss(*tensors), watched)), None


IMPLEMENTATIONS: dict[str, Runner] = {
    "ours_jax": run_ours_jax,
    "ours_torch": run_ours_torch,
    "dense_jax": run_dense_jax,
    "dense_torch": run_dense_torch,
    "flat_torch": run_flat_torch,
}


def exact_gradients(case: Case, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """Float64 gradients by the dense formulas, a few tokens at a time against all codes; knows no factorisation."""
    import torch

    x, *rest = (torch.from_numpy(array).double() for array in inputs)
    if case.kind == "lfq":
        bits = (torch.arange(case.codes)[:, None] >> torch.arange(case.dim)) & 1
        codebook, scale = 2.0 * bits.double() - 1, 2.0
    else:
        (w, codebook), scale = rest, 1.0
    chunks = torch.arange(case.tokens).split(max(1, 2**24 // case.codes))
    average = torch.zeros(case.codes, dtype=torch.float64)
    for chunk in chunks:
        average += torch.softmax(scale / TEMPERATURE * x[chunk] @ codebook.T, dim=-1).sum(dim=0) / case.tokens
    slope = torch.log(average + 1e-5) + average / (average + 1e-5)
    weight = 1.0 if case.kind == "lfq" else ENTROPY_WEIGHT
    dx, dcodes = torch.zeros_like(x), torch.zeros_like(codebook) if case.kind == "ibq" else None
    for chunk in chunks:
        logits = scale * x[chunk] @ codebook.T
        log_q = torch.log_softmax(logits / TEMPERATURE, dim=-1)
        grad = log_q.exp() * (slope - log_q)
        grad = (weight / case.tokens / TEMPERATURE) * (grad - log_q.exp() * grad.sum(dim=-1, keepdim=True))
        if case.kind == "lfq":
            q = torch.where(x[chunk] > 0, 1.0, -1.0).double()
            dx[chunk] = scale * grad @ codebook + BETA * 2 / x.numel() * (x[chunk] - q)
            continue
        winner = logits.argmax(dim=-1)
        difference = (codebook[winner] - x[chunk]) * 2 / x.numel()
        upstream = w[chunk] + difference
        p = torch.softmax(logits, dim=-1)
        toward = upstream @ codebook.T
        grad += p * (toward - (p * toward).sum(dim=-1, keepdim=True))
        dx[chunk] = grad @ codebook - 2 * difference
        dcodes += grad.T @ x[chunk]
        dcodes.index_add_(0, winner, upstream + BETA * difference)
    return [g.numpy() for g in (dx, dcodes) if g is not None]
