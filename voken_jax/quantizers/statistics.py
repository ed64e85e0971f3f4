"""Codebook statistics over any number of batches: counts, usage and perplexity from one counter per code.

Shapes: K codes. Nothing of size tokens x codes is formed.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt

_MOST = jnp.iinfo(jnp.uint32).max


class CodebookStatistics(NamedTuple):
    """Counts of each code; a pytree, so it lives in a jitted loop or a checkpoint."""

    counts: UInt[Array, "K"]


def init_statistics(codes: int) -> CodebookStatistics:
    """No code chosen yet.

    Raises:
      ValueError: if codes is not positive.
    """
    if codes < 1:
        raise ValueError(f"found {codes} codes; a codebook has at least one")
    return CodebookStatistics(jnp.zeros((codes,), jnp.uint32))


def update_statistics(statistics: CodebookStatistics, indices: Int[Array, "*batch"]) -> CodebookStatistics:
    """Count the codes of one batch. Numbers outside [0, K) are ignored, so -1 may mark padding.

    Ids may be of any integer type. Counters stop at 2^32 - 1 instead of wrapping around.
    """
    codes = statistics.counts.shape[0]
    # Wide enough to say "past the end" whatever type the ids come in.
    flat = jnp.asarray(indices).astype(jnp.int32).reshape(-1)
    # A negative index would count from the end; as an index past the end it is dropped.
    flat = jnp.where(flat < 0, codes, flat)
    batch = jnp.zeros_like(statistics.counts).at[flat].add(1, mode="drop")
    return merge_statistics(statistics, CodebookStatistics(batch))


def merge_statistics(first: CodebookStatistics, second: CodebookStatistics) -> CodebookStatistics:
    """Statistics of both sets of batches together, from two hosts or two halves of an epoch."""
    total = first.counts + second.counts
    return CodebookStatistics(jnp.where(total < first.counts, jnp.uint32(_MOST), total))


def usage(statistics: CodebookStatistics) -> Float[Array, ""]:
    """Share of the codes that were chosen at least once, in [0, 1]."""
    return jnp.mean(statistics.counts > 0, dtype=jnp.float32)


def perplexity(statistics: CodebookStatistics) -> Float[Array, ""]:
    """Exponential of the entropy of the counts: the size of an evenly used codebook that is as diverse, in [1, K].

    Zero when nothing has been counted.
    """
    counts = statistics.counts.astype(jnp.float32)
    total = counts.sum()
    share = counts / jnp.maximum(total, 1)
    entropy = -jnp.sum(jnp.where(share > 0, share * jnp.log(jnp.where(share > 0, share, 1)), 0))
    return jnp.where(total > 0, jnp.exp(entropy), 0)
