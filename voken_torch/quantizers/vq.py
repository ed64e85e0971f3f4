"""Nearest-code vector quantization, the baseline of VQ-VAE and VQGAN, streaming over blocks of codes.

Shapes: N tokens, K codes, D code dimension.

Van den Oord et al., "Neural Discrete Representation Learning", 2017; Esser et al., "Taming Transformers", 2021.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from voken_torch.quantizers.blocks import Buffers, compute_dtype, in_full_precision, row_argmax
from voken_torch.quantizers.ibq import DEFAULT_MEMORY_BUDGET, check_shapes
from voken_torch.quantizers.streaming import make_plan

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

    quantized: Float[Tensor, "*batch D"]
    indices: Int[Tensor, "*batch"]
    loss: Float[Tensor, ""]
    codebook_loss: Float[Tensor, ""]
    commitment: Float[Tensor, ""]


def vq(
    z: Float[Tensor, "*batch D"],
    codebook: Float[Tensor, "K D"],
    *,
    beta: float = 0.25,
    legacy: bool = True,
    l2_normalize: bool = False,
    memory_budget_bytes: int = DEFAULT_MEMORY_BUDGET,
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
        ValueError: shapes disagree or there are no tokens or codes.
    """
    indices = vq_encode(z, codebook, l2_normalize=l2_normalize, memory_budget_bytes=memory_budget_bytes)
    dtype = compute_dtype(z, codebook)
    values, codes = z.to(dtype), F.embedding(indices, codebook).to(dtype)
    codebook_loss = (codes - values.detach()).square().mean()
    commitment = (codes.detach() - values).square().mean()
    loss = commitment + beta * codebook_loss if legacy else beta * commitment + codebook_loss
    # codes + (z - z) is exactly the code, which z + (codes - z) is not after rounding.
    quantized = codes.detach() + (values - values.detach())
    return VQOutput(quantized.to(z.dtype), indices, loss, codebook_loss, commitment)


def vq_encode(
    z: Float[Tensor, "*batch D"],
    codebook: Float[Tensor, "K D"],
    *,
    l2_normalize: bool = False,
    memory_budget_bytes: int = DEFAULT_MEMORY_BUDGET,
) -> Int[Tensor, "*batch"]:
    """Numbers of the nearest codes, ties to the lowest number.

    Raises:
        ValueError: shapes disagree or there are no tokens or codes.
    """
    check_shapes(z, codebook)
    with torch.no_grad(), in_full_precision(z):
        _, indices = nearest(z.reshape(-1, z.shape[-1]), codebook, l2_normalize, memory_budget_bytes)
    return indices.to(torch.int32).reshape(z.shape[:-1])


def nearest(
    z: Float[Tensor, "N D"], codebook: Float[Tensor, "K D"], l2_normalize: bool, memory_budget_bytes: int
) -> tuple[Float[Tensor, " N"], Int[Tensor, " N"]]:
    """Largest score of each token and the lowest number of a code that has it.

    The score is <z, e> - |e|^2 / 2, which orders codes by distance, or the cosine up to the token's length.
    """
    plan, dtype = make_plan(z, codebook, memory_budget_bytes), compute_dtype(z, codebook)
    buffers, z = Buffers(plan, z, dtype, 1), z.to(dtype)
    best = z.new_full((plan.tokens,), -torch.inf)
    winner = torch.zeros(plan.tokens, dtype=torch.int64, device=z.device)
    for block in plan.blocks():
        codes = codebook[block].to(dtype)
        squares = codes.square().sum(dim=1)
        for rows in plan.tiles():
            scores = torch.mm(z[rows], codes.t(), out=buffers.view(0, z[rows].shape[0], codes.shape[0]))
            if l2_normalize:
                scores.div_(squares.sqrt().clamp(min=_NORM_FLOOR))
            else:
                scores.sub_(squares / 2)
            score, index = row_argmax(scores)
            winner[rows] = torch.where(score > best[rows], index + block.start, winner[rows])
            best[rows] = torch.maximum(score, best[rows])
    return best, winner
