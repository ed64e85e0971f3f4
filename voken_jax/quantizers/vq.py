"""Nearest-code vector quantization, the baseline of VQ-VAE and VQGAN, streaming over blocks of codes.

Shapes: N tokens, K codes, D code dimension.

Van den Oord et al., "Neural Discrete Representation Learning", 2017; Esser et al., "Taming Transformers", 2021.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from voken_jax.quantizers import assignment, blocks
from voken_jax.quantizers.ibq import check_shapes
from voken_jax.quantizers.streaming import make_plan

_NORM_FLOOR = 1e-12


class VQOutput(NamedTuple):
    """Result of `vq`.

    Attributes:
      quantized: (..., D) nearest codes in z's dtype; the gradient goes straight to z.
      indices: (...) int32 numbers of the nearest codes, ties to the lowest.
      loss: codebook_loss and commitment with beta on one of them, see `vq`.
      codebook_loss: mean (z_q - sg(z))^2, gradient to the codes only.
      commitment: mean (sg(z_q) - z)^2, gradient to z only.
    """

    quantized: Float[Array, "*batch D"]
    indices: Int[Array, "*batch"]
    loss: Float[Array, ""]
    codebook_loss: Float[Array, ""]
    commitment: Float[Array, ""]


def vq(
    z: Float[Array, "*batch D"],
    codebook: Float[Array, "K D"],
    *,
    beta: float = 0.25,
    legacy: bool = True,
    l2_normalize: bool = False,
    memory_budget_bytes: int | None = None,
) -> VQOutput:
    """Replace every token by its nearest code.

    Args:
      z: any leading axes, code dimension last.
      codebook: one code per row.
      beta: weight of the codebook loss if `legacy`, else of the commitment.
      legacy: VQGAN's original placement of beta, kept because published models were trained with it.
      l2_normalize: search by angle, with both sides scaled to unit length; codes and losses stay unscaled.
      memory_budget_bytes: bound on the tokens x codes temporaries of the search.

    Raises:
      ValueError: if shapes disagree or there are no tokens or codes.
    """
    indices = vq_encode(z, codebook, l2_normalize=l2_normalize, memory_budget_bytes=memory_budget_bytes)
    return assemble(z, codebook[indices], indices, beta=beta, legacy=legacy)


def assemble(
    z: Float[Array, "*batch D"],
    codes: Float[Array, "*batch D"],
    indices: Int[Array, "*batch"],
    *,
    beta: float,
    legacy: bool,
) -> VQOutput:
    """Losses of `vq` from the looked-up codes, through which the codebook gets its gradient."""
    dtype = assignment.compute_dtype(z, codes)
    values, codes = z.astype(dtype), codes.astype(dtype)
    codebook_loss = jnp.mean(jnp.square(codes - lax.stop_gradient(values)))
    commitment = jnp.mean(jnp.square(lax.stop_gradient(codes) - values))
    loss = commitment + beta * codebook_loss if legacy else beta * commitment + codebook_loss
    # codes + (z - z) is exactly the code, which z + (codes - z) is not after rounding.
    quantized = lax.stop_gradient(codes) + (values - lax.stop_gradient(values))
    return VQOutput(quantized.astype(z.dtype), indices, loss, codebook_loss, commitment)


def vq_encode(
    z: Float[Array, "*batch D"],
    codebook: Float[Array, "K D"],
    *,
    l2_normalize: bool = False,
    memory_budget_bytes: int | None = None,
) -> Int[Array, "*batch"]:
    """Numbers of the nearest codes, ties to the lowest number.

    Raises:
      ValueError: if shapes disagree or there are no tokens or codes.
    """
    check_shapes(z, codebook)
    z, codebook = lax.stop_gradient(z), lax.stop_gradient(codebook)
    _, indices = nearest(z.reshape(-1, z.shape[-1]), codebook, l2_normalize, memory_budget_bytes)
    return indices.reshape(z.shape[:-1])


def nearest(
    z: Float[Array, "N D"], codebook: Float[Array, "K D"], l2_normalize: bool, memory_budget_bytes: int | None
) -> tuple[Float[Array, "N"], Int[Array, "N"]]:
    """Largest score of each token and the lowest number of a code that has it.

    The score is <z, e> - |e|^2 / 2, which orders codes by distance, or the cosine up to the token's length.
    """
    plan = make_plan(z, codebook, memory_budget_bytes)
    dtype = assignment.compute_dtype(z, codebook)

    def search(tile: Array) -> tuple[Array, Array]:
        def step(best: tuple[Array, Array], number: Array) -> tuple[tuple[Array, Array], None]:
            block = blocks.read_block(codebook, number, plan)
            scores = assignment.mask_seen(_scores(block.codes, tile, l2_normalize), block, -jnp.inf)
            score, index = blocks.column_argmax(scores)
            better = score > best[0]
            return (jnp.maximum(score, best[0]), jnp.where(better, block.start + index, best[1])), None

        tokens = tile.shape[0]
        start = (jnp.full((tokens,), -jnp.inf, dtype), jnp.zeros((tokens,), jnp.int32))
        return lax.scan(step, start, jnp.arange(plan.blocks))[0]

    score, index = blocks.map_tiles(search, blocks.to_tiles(z, plan))
    return blocks.from_tiles(score, plan), blocks.from_tiles(index, plan)


def _scores(codes: Float[Array, "k D"], z: Float[Array, "n D"], l2_normalize: bool) -> Float[Array, "k n"]:
    products = assignment.logits_of(codes, z)
    squares = jnp.sum(jnp.square(codes.astype(products.dtype)), axis=1, keepdims=True)
    if l2_normalize:
        return products / jnp.maximum(jnp.sqrt(squares), _NORM_FLOOR)
    return products - squares / 2
