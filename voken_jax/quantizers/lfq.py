"""Lookup-free quantization: every channel becomes its sign, and the signs are the code's bits.

Shapes: N tokens, D channels = bits; the codebook has 2^D codes and no parameters.

Yu et al., "Language Model Beats Diffusion: Tokenizer is Key to Visual Generation", ICLR 2024; Luo et al.,
"Open-MAGVIT2", 2024 (factorised token indices).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from voken_jax.quantizers.entropy import bernoulli_entropy, factorized_average_entropy
from voken_jax.quantizers.ids import widened

_INDEX_BITS = 31


class LFQOutput(NamedTuple):
    """Result of `lfq`. Scalars are in nats (entropies) or mean squared units (commitment), unweighted.

    Attributes:
      quantized: (..., D) of exactly -1 and +1, in the input's dtype; its gradient goes straight to the input.
      indices: (...) int32 code numbers, channel 0 the least significant bit.
      per_sample_entropy: mean over tokens of the entropy of a token's soft code; low means decided.
      codebook_entropy: entropy of the average soft code; high means that all codes are used.
      aux_loss: sample_weight * per_sample_entropy - batch_weight * codebook_entropy.
      commitment: mean squared distance of the input to its code, gradient to the input only.
    """

    quantized: Float[Array, "*batch D"]
    indices: Int[Array, "*batch"]
    per_sample_entropy: Float[Array, ""]
    codebook_entropy: Float[Array, ""]
    aux_loss: Float[Array, ""]
    commitment: Float[Array, ""]


def lfq(
    x: Float[Array, "*batch D"],
    *,
    temperature: float = 0.01,
    sample_weight: float = 1.0,
    batch_weight: float = 1.0,
    with_entropy: bool = True,
    block_bytes: int = 16 * 2**20,
) -> LFQOutput:
    """Quantize to signs, with the exact entropy terms of the 2^D-code softmax, without building it.

    With codes c in {-1, +1}^D the soft assignment is softmax_k(2 <x, c_k> / temperature). Means run over all tokens of
    `x`: the whole batch under `jit`, one device's tokens inside `shard_map`.

    Args:
      x: any leading axes, channels last. Entropies are computed in at least float32.
      temperature: of the soft assignment; static.
      sample_weight: weight of the per-sample entropy in `aux_loss`.
      batch_weight: weight of the codebook entropy in `aux_loss`.
      with_entropy: False returns zeros for the three entropy terms and skips their cost.
      block_bytes: bound on every temporary of the codebook entropy, see `factorized_average_entropy`.

    Raises:
      ValueError: if D is 0 or over 31, temperature is not positive, or there are no tokens.
    """
    _check_dim(x.shape[-1])
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; it must be positive")
    if x.size == 0:
        raise ValueError(f"x has shape {x.shape}: there are no tokens to quantize")
    values = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    signs = jnp.where(values > 0, 1, -1).astype(values.dtype)
    # signs + (x - x) is exactly the sign, which x + (signs - x) is not after rounding.
    quantized = (signs + (values - lax.stop_gradient(values))).astype(x.dtype)
    commitment = jnp.mean(jnp.square(values - signs))
    per_sample = codebook = jnp.zeros((), values.dtype)
    if with_entropy:
        logits = values.reshape(-1, values.shape[-1]) * (4 / temperature)
        per_sample = bernoulli_entropy(logits).sum(axis=-1).mean()
        codebook = factorized_average_entropy(logits, block_bytes)
    aux = sample_weight * per_sample - batch_weight * codebook
    return LFQOutput(quantized, lfq_indices(x), per_sample, codebook, aux, commitment)


def lfq_indices(x: Float[Array, "*batch D"]) -> Int[Array, "*batch"]:
    """Code numbers of the signs of `x` (0 counts as negative): all that encoding needs.

    Raises:
      ValueError: if D is 0 or over 31.
    """
    _check_dim(x.shape[-1])
    bits = (x > 0).astype(jnp.int32)
    return jnp.sum(bits << jnp.arange(x.shape[-1], dtype=jnp.int32), axis=-1, dtype=jnp.int32)


def indices_to_codes(indices: Any, dim: int, dtype: jnp.dtype = jnp.float32) -> Float[Array, "*batch D"]:
    """Codes (..., dim) of -1 and +1 for code numbers in [0, 2^dim): an array or list of any integer type.

    Raises:
      ValueError: if dim is 0 or over 31, or a number is no code. Inside a traced function, where that cannot be
        raised, such a number gives not-a-number instead of a wrong code.
    """
    _check_dim(dim)
    numbers = widened(indices, 2**dim, "indices")
    bits = (numbers[..., None] >> jnp.arange(dim, dtype=jnp.int32)) & 1
    codes = (2 * bits - 1).astype(dtype)
    if isinstance(numbers, jax.core.Tracer) and jnp.issubdtype(dtype, jnp.floating):
        return jnp.where((numbers >> dim == 0)[..., None], codes, jnp.nan)
    return codes


def split_indices(indices: Any, bits: tuple[int, int] = (6, 12)) -> tuple[Int[Array, "*batch"], Int[Array, "*batch"]]:
    """Split code numbers of sum(bits) bits into (pre, post), int32: numbers of the first and of the last channels.

    Args:
      indices: array or list of any integer type.
      bits: widths of the two.

    Raises:
      ValueError: if bits do not name two positive widths of at most 31 bits in all, or a number has more bits.
    """
    _check_bits(bits)
    numbers = widened(indices, 2 ** sum(bits), "indices")
    return numbers & (2 ** bits[0] - 1), numbers >> bits[0]


def join_indices(pre: Any, post: Any, bits: tuple[int, int] = (6, 12)) -> Int[Array, "*batch"]:
    """Undo `split_indices`: int32, whatever integer types the two have.

    Raises:
      ValueError: if bits do not name two positive widths of at most 31 bits in all, or a number has more bits.
    """
    _check_bits(bits)
    return widened(pre, 2 ** bits[0], "pre") | (widened(post, 2 ** bits[1], "post") << bits[0])


def _check_dim(dim: int) -> None:
    if not 1 <= dim <= _INDEX_BITS:
        raise ValueError(f"found {dim} channels; code numbers are int32, so use between 1 and {_INDEX_BITS} channels")


def _check_bits(bits: tuple[int, int]) -> None:
    if len(bits) != 2 or min(bits) < 1:
        raise ValueError(f"bits is {bits}; give two positive widths, such as (6, 12)")
    _check_dim(sum(bits))
