"""Common part of the two forms of the soft assignment: settings, results and arithmetic.

Shapes: N tokens, K codes, D code dimension; n tokens in a tile, k codes in a block.

`streaming` walks over blocks of codes and keeps nothing of size tokens x codes; `rows` holds all logits of a tile of
tokens, which saves two of seven matrix products where a budget allows it. Both give the same numbers.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from voken_jax.quantizers.blocks import CodeBlock
from voken_jax.quantizers.entropy import SATURATION

_PRECISION = lax.Precision.HIGHEST


class Collectives(NamedTuple):
    """Mesh axes over which results are combined; empty on one device.

    Attributes:
      codes: axis names over which the codebook is split.
      tokens: axis names over which the tokens are split.
      average: axis names over which the average assignment is taken: `tokens`, or empty for statistics per device.
    """

    codes: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    average: tuple[str, ...] = ()


class Settings(NamedTuple):
    """Static settings of the soft assignment; hashable."""

    temperature: float
    use_entropy: bool
    memory_budget_bytes: int | None
    collectives: Collectives = Collectives()


class Assignment(NamedTuple):
    """Per-token results of the search, and the scalars of the entropy terms."""

    hard: Float[Array, "N D"]
    indices: Int[Array, "N"]
    sample_entropy: Float[Array, ""]
    average_entropy: Float[Array, ""]


class Cotangents(NamedTuple):
    """Incoming gradients of the outputs of the soft assignment, in `compute_dtype`."""

    soft: Float[Array, "N D"]
    hard: Float[Array, "N D"]
    sample_entropy: Float[Array, ""]
    average_entropy: Float[Array, ""]


def compute_dtype(*arrays: Array) -> Any:
    """The dtype of logits: at least float32, float64 when an input is."""
    return jnp.promote_types(jnp.result_type(*arrays), jnp.float32)


def logits_of(codes: Float[Array, "k D"], z: Float[Array, "n D"]) -> Float[Array, "k n"]:
    """<e_k, z_n> in `compute_dtype`; two half-precision inputs are multiplied as they are and summed in float32.

    Codes come first everywhere: then none of the products of the backward pass has a transposed left operand, which
    costs a CPU half of its matmul rate, and both passes round logits alike, which the entropy terms at temperature 0.01
    notice.
    """
    dtype = compute_dtype(z, codes)
    if z.dtype != codes.dtype:
        z, codes = z.astype(dtype), codes.astype(dtype)
    return lax.dot_general(codes, z, (((1,), (1,)), ((), ())), precision=_PRECISION, preferred_element_type=dtype)


def matmul(a: Array, b: Array) -> Array:
    """A @ b in full precision and in b's dtype."""
    return jnp.matmul(a.astype(b.dtype), b, precision=_PRECISION)


def transposed(x: Float[Array, "a b"]) -> Float[Array, "b a"]:
    """A transposed copy, behind a barrier that keeps the compiler from folding it back into a transposed product."""
    return lax.optimization_barrier(x.T)


def mask_seen(values: Float[Array, "k n"], block: CodeBlock, fill: float = 0.0) -> Float[Array, "k n"]:
    """Replace the rows of codes that an earlier block has already counted."""
    return values if block.fresh is None else jnp.where(block.fresh[:, None], values, fill)


def shifted(values: Array, maximum: Array, temperature: float) -> Array:
    """(values - maximum) / temperature, bounded below so that exp() times it is zero and never not-a-number."""
    return jnp.maximum((values - maximum) * (1 / temperature), -SATURATION)


def lookup(codebook: Float[Array, "K D"], indices: Int[Array, "*s"], axes: tuple[str, ...] = ()) -> Array:
    """Rows of the codebook; on shards the owner of a row gives it to the others."""
    if not axes:
        return codebook[indices]
    local = indices - lax.axis_index(axes) * codebook.shape[0]
    mine = (local >= 0) & (local < codebook.shape[0])
    rows = codebook[jnp.where(mine, local, 0)]
    return lax.psum(jnp.where(mine[..., None], rows, 0), axes)


def add_rows(
    total: Float[Array, "K D"], rows: Int[Array, "N"], update: Float[Array, "N D"], axes: tuple[str, ...] = ()
) -> Float[Array, "K D"]:
    """The transpose of `lookup`: add each update to its row; on shards, rows of other shards are dropped."""
    if axes:
        local = rows - lax.axis_index(axes) * total.shape[0]
        rows = jnp.where((local >= 0) & (local < total.shape[0]), local, total.shape[0])
    return total.at[rows].add(update, mode="drop")


def mean(value: Array, axes: tuple[str, ...]) -> Array:
    """Mean over the devices along mesh axes; the value itself without any."""
    return lax.pmean(value, axes) if axes else value


def total(value: Array, axes: tuple[str, ...]) -> Array:
    """Sum over the devices along mesh axes; the value itself without any."""
    return lax.psum(value, axes) if axes else value
