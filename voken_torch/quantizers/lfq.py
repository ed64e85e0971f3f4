"""Lookup-free quantization: every channel becomes its sign, and the signs are the code's bits.

Shapes: N tokens, D channels = bits; the codebook has 2^D codes and no parameters.

Yu et al., "Language Model Beats Diffusion: Tokenizer is Key to Visual Generation", ICLR 2024; Luo et al.,
"Open-MAGVIT2", 2024 (factorised token indices).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from voken_torch.quantizers.blocks import ReduceMean, compute_dtype
from voken_torch.quantizers.entropy import bernoulli_entropy, factorized_average_entropy
from voken_torch.quantizers.ids import widened

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

    quantized: Float[Tensor, "*batch D"]
    indices: Int[Tensor, "*batch"]
    per_sample_entropy: Float[Tensor, ""]
    codebook_entropy: Float[Tensor, ""]
    aux_loss: Float[Tensor, ""]
    commitment: Float[Tensor, ""]


def lfq(
    x: Float[Tensor, "*batch D"],
    *,
    temperature: float = 0.01,
    sample_weight: float = 1.0,
    batch_weight: float = 1.0,
    with_entropy: bool = True,
    block_bytes: int = 16 * 2**20,
    reduce_mean: ReduceMean | None = None,
) -> LFQOutput:
    """Quantize to signs, with the exact entropy terms of the 2^D-code softmax, without building it.

    With codes c in {-1, +1}^D the soft assignment is softmax_k(2 <x, c_k> / temperature). Means run over the tokens of
    `x`; with `reduce_mean` the average soft code is taken over the tokens of all processes.

    Args:
        x: any leading axes, channels last. Entropies are computed in at least float32.
        temperature: of the soft assignment.
        sample_weight: weight of the per-sample entropy in `aux_loss`.
        batch_weight: weight of the codebook entropy in `aux_loss`.
        with_entropy: False returns zeros for the three entropy terms and skips their cost.
        block_bytes: bound on every temporary of the codebook entropy, see `factorized_average_entropy`.
        reduce_mean: mean over processes, for statistics over a batch that is spread over several.

    Raises:
        ValueError: D is 0 or over 31, temperature is not positive, or there are no tokens.
    """
    _check_dim(x.shape[-1])
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; it must be positive")
    if x.numel() == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}: there are no tokens to quantize")
    values = x.to(compute_dtype(x))
    signs = torch.where(values.detach() > 0, 1.0, -1.0).to(values.dtype)
    # signs + (x - x) is exactly the sign, which x + (signs - x) is not after rounding.
    quantized = (signs + (values - values.detach())).to(x.dtype)
    commitment = (values - signs).square().mean()
    per_sample = codebook = values.new_zeros(())
    if with_entropy:
        logits = values.reshape(-1, values.shape[-1]) * (4 / temperature)
        per_sample = bernoulli_entropy(logits).sum(dim=-1).mean()
        codebook = factorized_average_entropy(logits, block_bytes, reduce_mean)
    aux = sample_weight * per_sample - batch_weight * codebook
    return LFQOutput(quantized, lfq_indices(x), per_sample, codebook, aux, commitment)


def lfq_indices(x: Float[Tensor, "*batch D"]) -> Int[Tensor, "*batch"]:
    """Code numbers of the signs of `x` (0 counts as negative): all that encoding needs.

    Raises:
        ValueError: D is 0 or over 31.
    """
    _check_dim(x.shape[-1])
    bits = (x.detach() > 0).to(torch.int32)
    return (bits << torch.arange(x.shape[-1], dtype=torch.int32, device=x.device)).sum(dim=-1, dtype=torch.int32)


def indices_to_codes(indices: Any, dim: int, dtype: torch.dtype = torch.float32) -> Float[Tensor, "*batch D"]:
    """Codes (..., dim) of -1 and +1 for code numbers in [0, 2^dim): a tensor, array or list of any integer type.

    Raises:
        ValueError: dim is 0 or over 31, or a number is no code.
    """
    _check_dim(dim)
    numbers = widened(indices, 2**dim, "indices")
    bits = (numbers[..., None] >> torch.arange(dim, dtype=torch.int64, device=numbers.device)) & 1
    return (2 * bits - 1).to(dtype)


def split_indices(indices: Any, bits: tuple[int, int] = (6, 12)) -> tuple[Int[Tensor, "*batch"], Int[Tensor, "*batch"]]:
    """Split code numbers of sum(bits) bits into (pre, post), int32: numbers of the first and of the last channels.

    Args:
        indices: tensor, array or list of any integer type.
        bits: widths of the two.

    Raises:
        ValueError: bits do not name two positive widths of at most 31 bits in all, or a number has more bits.
    """
    _check_bits(bits)
    numbers = widened(indices, 2 ** sum(bits), "indices").to(torch.int32)
    return numbers & (2 ** bits[0] - 1), numbers >> bits[0]


def join_indices(pre: Any, post: Any, bits: tuple[int, int] = (6, 12)) -> Int[Tensor, "*batch"]:
    """Undo `split_indices`: int32, whatever integer types the two have.

    Raises:
        ValueError: bits do not name two positive widths of at most 31 bits in all, or a number has more bits.
    """
    _check_bits(bits)
    joined = widened(pre, 2 ** bits[0], "pre") | (widened(post, 2 ** bits[1], "post") << bits[0])
    return joined.to(torch.int32)


def _check_dim(dim: int) -> None:
    if not 1 <= dim <= _INDEX_BITS:
        raise ValueError(f"found {dim} channels; code numbers are int32, so use between 1 and {_INDEX_BITS} channels")


def _check_bits(bits: tuple[int, int]) -> None:
    if len(bits) != 2 or min(bits) < 1:
        raise ValueError(f"bits is {bits}; give two positive widths, such as (6, 12)")
    _check_dim(sum(bits))
