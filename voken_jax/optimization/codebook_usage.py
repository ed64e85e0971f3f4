"""Track the codes that training uses: a flag per code on every device, read on logging steps only.

Shape legend: A micro-batches, b samples of one, G parts that a batch is split into, K codes.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Int

from voken_jax.parallel.sharding import BATCH, SAMPLES, batch_sharding, batch_shards

MICRO_BATCHES = P(None, SAMPLES)
"""Where a step's ids lie: those of a sample on the device that has the sample."""


class SeenCodes(NamedTuple):
    """Codes used since the last look.

    Attributes:
        flags: whether a part's tokens used a code.
        steps: number of steps that were looked at.
    """

    flags: Bool[Array, "G K"]
    steps: Int[Array, ""]


@functools.partial(jax.jit, static_argnums=(0, 1))
def nothing_seen(mesh: Mesh, codes: int) -> SeenCodes:
    """No code has been used yet."""
    flags = jnp.zeros((batch_shards(mesh), codes), jnp.bool)
    return SeenCodes(jax.lax.with_sharding_constraint(flags, batch_sharding(mesh)), jnp.zeros((), jnp.int32))


def see(mesh: Mesh, seen: SeenCodes, ids: Int[Array, "A b ..."], good: Bool[Array, ""]) -> SeenCodes:
    """Set the flags of one step's codes, unless it was refused; traceable, and nothing passes between devices."""

    def mark(flags: Bool[Array, "1 K"], own: Int[Array, "A b ..."], good: Bool[Array, ""]) -> Bool[Array, "1 K"]:
        # An index past the end is dropped.
        return flags.at[0, jnp.where(good, own.reshape(-1), flags.shape[1])].set(True, mode="drop")

    marked = jax.shard_map(mark, mesh=mesh, in_specs=(BATCH, MICRO_BATCHES, P()), out_specs=BATCH)
    return SeenCodes(marked(seen.flags, ids, good), seen.steps + good)


@jax.jit
def distinct(flags: Bool[Array, "G K"]) -> Int[Array, ""]:
    """Count the codes that any device has used."""
    return flags.any(axis=0).sum(dtype=jnp.int32)
