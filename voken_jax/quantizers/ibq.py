"""Index backpropagation quantization: every code is trained by every token, at any codebook size.

Shapes: N tokens, K codes, D code dimension.

Shi et al., "Scalable Image Tokenization with Index Backpropagation Quantization", ICCV 2025. The quantized value is
o E with o = h - stop_gradient(p) + p: the winner's code in the forward direction, the softmax expectation p E in the
backward direction. That is attention with query z, keys and values E, and a hard forward value, so it streams as
attention does (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018); see `streaming`.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from voken_jax.quantizers import rows, streaming
from voken_jax.quantizers.assignment import Assignment, Cotangents, Settings, compute_dtype
from voken_jax.quantizers.ids import widened
from voken_jax.quantizers.rows import RowResiduals
from voken_jax.quantizers.streaming import Residuals


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

    quantized: Float[Array, "*batch D"]
    indices: Int[Array, "*batch"]
    quant_loss: Float[Array, ""]
    sample_entropy: Float[Array, ""]
    average_entropy: Float[Array, ""]
    entropy_loss: Float[Array, ""]


class SoftAssignment(NamedTuple):
    """The differentiable core's outputs: `soft` and `hard` have one value and different gradients."""

    soft: Float[Array, "N D"]
    hard: Float[Array, "N D"]
    indices: Int[Array, "N"]
    sample_entropy: Float[Array, ""]
    average_entropy: Float[Array, ""]


def ibq(
    z: Float[Array, "*batch D"],
    codebook: Float[Array, "K D"],
    *,
    beta: float = 0.25,
    use_entropy: bool = True,
    temperature: float = 0.01,
    sample_weight: float = 1.0,
    batch_weight: float = 1.0,
    memory_budget_bytes: int | None = None,
) -> IBQOutput:
    """Quantize with index backpropagation, streaming over blocks of codes forward and backward.

    Logits are <z, e_k>, in float32 for half-precision inputs and in float64 when an input is float64. The backward pass
    keeps at most O(N D + K) numbers. Means run over all tokens of `z`: the whole batch under `jit`, one device's tokens
    inside `shard_map`.

    Args:
      z: any leading axes, code dimension last.
      codebook: one code per row.
      beta: weight of the term of `quant_loss` that moves the codes to the tokens.
      use_entropy: False returns zeros for the entropy terms and skips their cost.
      temperature: of the softmax inside the entropy terms (the gradient's softmax has temperature 1); static.
      sample_weight: weight of the sample entropy in `entropy_loss`.
      batch_weight: weight of the average entropy in `entropy_loss`.
      memory_budget_bytes: bound on all tokens x codes temporaries together, counting every token of `z`. Where the
        logits of 64 tokens fit it twice, five matrix products are needed instead of seven. None allows 288 MiB on a CPU
        and 512 MiB on an accelerator for this, and 16 MiB and 512 MiB otherwise.

    Raises:
      ValueError: if shapes disagree, there are no tokens or codes, or temperature or budget are not positive.
    """
    settings = Settings(check_temperature(temperature), use_entropy, memory_budget_bytes)
    check_shapes(z, codebook)
    assigned = _soft_assignment(z.reshape(-1, z.shape[-1]), codebook, settings)
    return assemble(z, assigned, beta=beta, sample_weight=sample_weight, batch_weight=batch_weight)


def ibq_encode(
    z: Float[Array, "*batch D"],
    codebook: Float[Array, "K D"],
    *,
    memory_budget_bytes: int | None = None,
) -> Int[Array, "*batch"]:
    """Numbers of the codes with the largest inner product: a streaming argmax, ties to the lowest number.

    Raises:
      ValueError: if shapes disagree or there are no tokens or codes.
    """
    check_shapes(z, codebook)
    flat = z.reshape(-1, z.shape[-1])
    settings = Settings(1.0, False, memory_budget_bytes)
    return streaming.forward(flat, codebook, settings).indices.reshape(z.shape[:-1])


def codebook_lookup(indices: Any, codebook: Float[Array, "K D"]) -> Float[Array, "*batch D"]:
    """Codes of code numbers in [0, K), an array or list of any integer type, for decoding.

    Raises:
      ValueError: a number outside [0, K). Inside a traced function it gives not-a-number instead of a wrong code.
    """
    numbers = widened(indices, codebook.shape[0], "indices")
    # Out of range on either side: by itself `take` counts negative numbers from the end.
    return jnp.take(codebook, jnp.where(numbers < 0, codebook.shape[0], numbers), axis=0, mode="fill")


def check_temperature(temperature: float) -> float:
    """Return the temperature as a Python float.

    Raises:
      ValueError: if it is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be positive")
    return float(temperature)


def check_shapes(z: Array, codebook: Array) -> None:
    """Check that tokens and codes can be compared.

    Raises:
      ValueError: if they cannot.
    """
    if codebook.ndim != 2 or z.ndim < 1 or z.shape[-1] != codebook.shape[1]:
        raise ValueError(
            f"found z of shape {z.shape} and a codebook of shape {codebook.shape}; "
            "expected (..., D) and (K, D): move channels last and check the code dimension"
        )


def assemble(
    z: Float[Array, "*batch D"],
    assigned: SoftAssignment,
    *,
    beta: float,
    sample_weight: float,
    batch_weight: float,
) -> IBQOutput:
    """Losses and shapes of the public output from the flat core output."""
    soft, hard = assigned.soft, assigned.hard
    flat = z.reshape(hard.shape).astype(hard.dtype)
    quant_loss = (
        jnp.mean(jnp.square(soft - flat))
        + jnp.mean(jnp.square(lax.stop_gradient(hard) - flat))
        + beta * jnp.mean(jnp.square(hard - lax.stop_gradient(flat)))
    )
    return IBQOutput(
        quantized=soft.astype(z.dtype).reshape(z.shape),
        indices=assigned.indices.reshape(z.shape[:-1]),
        quant_loss=quant_loss,
        sample_entropy=assigned.sample_entropy,
        average_entropy=assigned.average_entropy,
        entropy_loss=sample_weight * assigned.sample_entropy - batch_weight * assigned.average_entropy,
    )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _soft_assignment(z: Float[Array, "N D"], codebook: Float[Array, "K D"], settings: Settings) -> SoftAssignment:
    plan = rows.make_plan(z, codebook, settings) if settings.use_entropy else None
    if plan is None:
        result = streaming.forward(z, codebook, settings)
    else:
        result, _ = rows.forward(z, codebook, settings, plan)
    return as_soft(result, compute_dtype(z, codebook))


def as_soft(result: Assignment, dtype: Any) -> SoftAssignment:
    """The core's outputs; soft and hard lookups have the same value."""
    hard = result.hard.astype(dtype)
    return SoftAssignment(hard, hard, result.indices, result.sample_entropy, result.average_entropy)


def _assignment_forward(z: Array, codebook: Array, settings: Settings) -> tuple[SoftAssignment, tuple[Any, ...]]:
    plan = rows.make_plan(z, codebook, settings)
    residuals: Residuals | RowResiduals
    if plan is None:
        result, residuals = streaming.forward_with_residuals(z, codebook, settings)
    else:
        result, residuals = rows.forward(z, codebook, settings, plan)
    return as_soft(result, compute_dtype(z, codebook)), (z, codebook, residuals)


def _assignment_backward(
    settings: Settings, saved: tuple[Array, Array, Residuals | RowResiduals], given: SoftAssignment
) -> tuple[Array, Array]:
    z, codebook, residuals = saved
    cotangents = Cotangents(given.soft, given.hard, given.sample_entropy, given.average_entropy)
    if isinstance(residuals, Residuals):
        return streaming.backward(z, codebook, residuals, cotangents, settings)
    plan = rows.make_plan(z, codebook, settings)
    assert plan is not None, "the forward pass chose whole rows"
    return rows.backward(z, codebook, residuals, cotangents, settings, plan)


_soft_assignment.defvjp(_assignment_forward, _assignment_backward)
