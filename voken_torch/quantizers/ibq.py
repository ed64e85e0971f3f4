"""Index backpropagation quantization: every code is trained by every token, at any codebook size.

Shapes: N tokens, K codes, D code dimension.

Shi et al., "Scalable Image Tokenization with Index Backpropagation Quantization", ICCV 2025. The quantized value is
o E with o = h - stop_gradient(p) + p: the winner's code in the forward direction, the softmax expectation p E in the
backward direction. That is attention with query z, keys and values E, and a hard forward value, so it streams as
attention does (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018); see `streaming`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from voken_torch.quantizers import rows, streaming
from voken_torch.quantizers.assignment import Assignment, Cotangents, Settings
from voken_torch.quantizers.blocks import ReduceMean
from voken_torch.quantizers.ids import widened
from voken_torch.quantizers.rows import RowResiduals
from voken_torch.quantizers.streaming import Residuals, SharpResiduals

DEFAULT_MEMORY_BUDGET = 288 * 2**20


class IBQOutput(NamedTuple):
    """Result of `ibq`; every scalar is unweighted, and differentiable unless it says otherwise.

    Attributes:
        quantized: (..., D) codes of the winners in z's dtype; gradient to z and to every code through the softmax.
        indices: (...) int32 numbers of the winners, ties to the lowest.
        quant_loss: mean (z_q - z)^2 + mean (sg(z_h) - z)^2 + beta * mean (z_h - sg(z))^2, z_h the hard lookup.
        sample_entropy: mean over tokens of the entropy of softmax(logits / temperature), in nats; 0 without entropy.
        average_entropy: entropy of the average assignment, in nats; 0 without entropy.
        entropy_loss: sample_weight * sample_entropy - batch_weight * average_entropy.
    """

    quantized: Float[Tensor, "*batch D"]
    indices: Int[Tensor, "*batch"]
    quant_loss: Float[Tensor, ""]
    sample_entropy: Float[Tensor, ""]
    average_entropy: Float[Tensor, ""]
    entropy_loss: Float[Tensor, ""]


def ibq(
    z: Float[Tensor, "*batch D"],
    codebook: Float[Tensor, "K D"],
    *,
    beta: float = 0.25,
    use_entropy: bool = True,
    temperature: float = 0.01,
    sample_weight: float = 1.0,
    batch_weight: float = 1.0,
    memory_budget_bytes: int = DEFAULT_MEMORY_BUDGET,
    reduce_mean: ReduceMean | None = None,
) -> IBQOutput:
    """Quantize with index backpropagation, streaming over blocks of codes forward and backward.

    Logits are <z, e_k>, in float32 for half-precision inputs and in float64 when an input is float64. The backward pass
    keeps at most O(N D + K) numbers. Means run over the tokens of `z`; with `reduce_mean` the average assignment is
    taken over the tokens of all processes.

    Args:
        z: any leading axes, code dimension last.
        codebook: one code per row.
        beta: weight of the term of `quant_loss` that moves the codes to the tokens.
        use_entropy: False returns zeros for the entropy terms and skips their cost.
        temperature: of the softmax inside the entropy terms (the gradient's softmax has temperature 1).
        sample_weight: weight of the sample entropy in `entropy_loss`.
        batch_weight: weight of the average entropy in `entropy_loss`.
        memory_budget_bytes: bound on all tokens x codes temporaries together, 288 MiB by default. Where the logits of
            64 tokens fit it twice, five matrix products are needed instead of seven.
        reduce_mean: mean over processes, for statistics over a batch that is spread over several.

    Raises:
        ValueError: shapes disagree, there are no tokens or codes, or temperature or budget are not positive.
    """
    settings = Settings(check_temperature(temperature), use_entropy, memory_budget_bytes, reduce_mean)
    check_shapes(z, codebook)
    flat = z.reshape(-1, z.shape[-1])
    if torch.is_grad_enabled() and (z.requires_grad or codebook.requires_grad):
        soft, hard, indices, sample, average = _SoftAssignment.apply(flat, codebook, settings)
    else:
        hard, indices, sample, average = _values(flat, codebook, settings)
        soft = hard
    flat = flat.to(hard.dtype)
    quant_loss = (
        (soft - flat).square().mean()
        + (hard.detach() - flat).square().mean()
        + beta * (hard - flat.detach()).square().mean()
    )
    return IBQOutput(
        quantized=soft.to(z.dtype).reshape(z.shape),
        indices=indices.reshape(z.shape[:-1]),
        quant_loss=quant_loss,
        sample_entropy=sample,
        average_entropy=average,
        entropy_loss=sample_weight * sample - batch_weight * average,
    )


def ibq_encode(
    z: Float[Tensor, "*batch D"],
    codebook: Float[Tensor, "K D"],
    *,
    memory_budget_bytes: int = DEFAULT_MEMORY_BUDGET,
) -> Int[Tensor, "*batch"]:
    """Numbers of the codes with the largest inner product: a streaming argmax, ties to the lowest number.

    Raises:
        ValueError: shapes disagree or there are no tokens or codes.
    """
    check_shapes(z, codebook)
    flat, settings = z.reshape(-1, z.shape[-1]), Settings(1.0, False, memory_budget_bytes)
    return streaming.forward(flat, codebook, settings, soft=False)[0].indices.reshape(z.shape[:-1])


def codebook_lookup(indices: Any, codebook: Float[Tensor, "K D"]) -> Float[Tensor, "*batch D"]:
    """Codes of code numbers in [0, K), a tensor, array or list of any integer type, for decoding.

    Raises:
        ValueError: a number outside [0, K).
    """
    return F.embedding(widened(indices, codebook.shape[0], "indices", codebook.device), codebook)


def check_temperature(temperature: float) -> float:
    """Return the temperature as a Python float.

    Raises:
        ValueError: it is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be positive")
    return float(temperature)


def check_shapes(z: Tensor, codebook: Tensor) -> None:
    """Check that tokens and codes can be compared.

    Raises:
        ValueError: they cannot.
    """
    if codebook.ndim != 2 or z.ndim < 1 or z.shape[-1] != codebook.shape[1]:
        raise ValueError(
            f"found z of shape {tuple(z.shape)} and a codebook of shape {tuple(codebook.shape)}; "
            "expected (..., D) and (K, D): move channels last and check the code dimension"
        )


def _values(z: Float[Tensor, "N D"], codebook: Float[Tensor, "K D"], settings: Settings) -> Assignment:
    """The soft assignment without gradients."""
    plan = rows.make_plan(z, codebook, settings) if settings.use_entropy else None
    if plan is None:
        return streaming.forward(z, codebook, settings, soft=False)[0]
    return rows.forward(z, codebook, settings, plan)[0]


class _SoftAssignment(torch.autograd.Function):
    """Differentiable core: (z, codebook) -> (soft, hard, indices, sample entropy, average entropy).

    `soft` and `hard` have one value and different gradients.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, codebook: Tensor, settings: Settings) -> tuple[Tensor, ...]:
        ctx.settings, ctx.plan = settings, rows.make_plan(z, codebook, settings)
        saved: tuple[Tensor, ...]
        if ctx.plan is not None:
            result, saved = rows.forward(z, codebook, settings, ctx.plan)
        else:
            result, residuals = streaming.forward(z, codebook, settings, soft=True)
            assert residuals is not None
            saved = (*residuals[:4], *(residuals.sharp or ()))
        ctx.save_for_backward(z, codebook, *saved)
        ctx.mark_non_differentiable(result.indices)
        return result.hard, result.hard.clone(), *result[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        z, codebook, *saved = ctx.saved_tensors
        soft, hard, _, sample, average = gradients
        given = Cotangents(soft, hard, sample, average)
        if ctx.plan is not None:
            return *rows.backward(z, codebook, RowResiduals(*saved), given, ctx.settings, ctx.plan), None
        indices, maximum, log_mass, expectation, *sharp = saved
        residuals = Residuals(indices, maximum, log_mass, expectation, SharpResiduals(*sharp) if sharp else None)
        return *streaming.backward(z, codebook, residuals, given, ctx.settings), None
