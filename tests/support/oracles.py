"""Quantizers written out densely, straight from their definitions: arrays of tokens x codes, plain differentiation."""

import jax
import jax.numpy as jnp
from jax import lax


def sign_codes(dim):
    """All 2^dim codes of -1 and +1, in the order of their numbers."""
    return 2.0 * ((jnp.arange(2**dim)[:, None] >> jnp.arange(dim)) & 1) - 1


def entropies(logits):
    """Mean entropy of the rows' softmax, and -sum a log(a + 1e-5) of its average over rows."""
    log_p = jax.nn.log_softmax(logits, axis=-1)
    p = jnp.exp(log_p)
    # Where p underflows, log p may be -inf in low precision; 0 log 0 is 0.
    sample = -jnp.where(p > 0, p * log_p, 0).sum(axis=-1).mean()
    average = p.mean(axis=0)
    return sample, -(average * jnp.log(average + 1e-5)).sum()


def dense_lfq(x, *, temperature=0.01, sample_weight=1.0, batch_weight=1.0):
    """(quantized, indices, per-sample entropy, codebook entropy, aux, commitment) of flat tokens (N, D)."""
    codes = sign_codes(x.shape[-1]).astype(x.dtype)
    q = jnp.where(x > 0, 1.0, -1.0)
    indices = jnp.argmax((q @ codes.T), axis=-1)
    sample, codebook = entropies(2 * x @ codes.T / temperature)
    commitment = jnp.mean((x - lax.stop_gradient(q)) ** 2)
    quantized = x + lax.stop_gradient(q - x)
    return quantized, indices, sample, codebook, sample_weight * sample - batch_weight * codebook, commitment


def dense_ibq(z, codebook, *, beta=0.25, use_entropy=True, temperature=0.01, sample_weight=1.0, batch_weight=1.0):
    """(quantized, indices, quant loss, sample entropy, average entropy, entropy loss) of flat tokens (N, D)."""
    logits = z @ codebook.T
    p = jax.nn.softmax(logits, axis=-1)
    indices = jnp.argmax(logits, axis=-1)
    h = jax.nn.one_hot(indices, codebook.shape[0], dtype=z.dtype)
    z_q = (h - lax.stop_gradient(p) + p) @ codebook
    z_h = h @ codebook
    stop = lax.stop_gradient
    loss = jnp.mean((z_q - z) ** 2) + jnp.mean((stop(z_h) - z) ** 2) + beta * jnp.mean((z_h - stop(z)) ** 2)
    sample, average = entropies(logits / temperature) if use_entropy else (jnp.zeros(()), jnp.zeros(()))
    return z_q, indices, loss, sample, average, sample_weight * sample - batch_weight * average


def dense_vq(z, codebook, *, beta=0.25, legacy=True, l2_normalize=False):
    """(quantized, indices, loss, codebook loss, commitment) of flat tokens (N, D)."""
    a, b = z, codebook
    if l2_normalize:
        a, b = (v / jnp.linalg.norm(v, axis=-1, keepdims=True) for v in (z, codebook))
    indices = jnp.argmin(((a[:, None] - b[None]) ** 2).sum(axis=-1), axis=-1)
    z_q = codebook[indices]
    codebook_loss = jnp.mean((z_q - lax.stop_gradient(z)) ** 2)
    commitment = jnp.mean((lax.stop_gradient(z_q) - z) ** 2)
    loss = commitment + beta * codebook_loss if legacy else beta * commitment + codebook_loss
    return z + lax.stop_gradient(z_q - z), indices, loss, codebook_loss, commitment
