"""The configured quantizer between encoder and decoder: one call for training, two small ones for inference.

Shape legend: B batch, h/w tokens, D code dimension, K codes.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from voken_common.config.schema.quantizer import IBQConfig, LFQConfig, QuantizerConfig
from voken_torch.device.kernels import at_least_float32
from voken_torch.quantizers.blocks import ReduceMean, in_full_precision
from voken_torch.quantizers.ibq import codebook_lookup, ibq, ibq_encode
from voken_torch.quantizers.lfq import indices_to_codes, lfq, lfq_indices
from voken_torch.quantizers.vq import vq, vq_encode

MIB = 2**20
Codebook = Float[Tensor, "K D"] | None


class Quantized(NamedTuple):
    """Codes for the decoder (with the straight-through gradient), ids, and unweighted terms by name."""

    codes: Float[Tensor, "B h w D"]
    indices: Int[Tensor, "B h w"]
    terms: dict[str, Float[Tensor, ""]]


def quantize(
    config: QuantizerConfig,
    latents: Float[Tensor, "B h w D"],
    codebook: Codebook,
    reduce_mean: ReduceMean | None = None,
) -> Quantized:
    """Quantize with all training terms, computed in float32 at least whatever autocast says.

    `reduce_mean` takes the batch entropy over all processes.
    """
    with in_full_precision(latents):
        latents = at_least_float32(latents)
        if isinstance(config, LFQConfig):
            return _lfq(config, latents, reduce_mean)
        if isinstance(config, IBQConfig):
            return _ibq(config, latents, codebook, reduce_mean)
        out = vq(
            latents,
            _required(codebook),
            beta=config.beta,
            legacy=config.legacy,
            l2_normalize=config.l2_normalize,
            memory_budget_bytes=config.memory_budget_mib * MIB,
        )
        return Quantized(out.quantized, out.indices, {"quant_loss": out.loss})


def _lfq(config: LFQConfig, latents: Float[Tensor, "B h w D"], reduce_mean: ReduceMean | None) -> Quantized:
    out = lfq(
        latents,
        temperature=config.temperature,
        sample_weight=config.sample_entropy_weight,
        batch_weight=config.batch_entropy_weight,
        block_bytes=config.memory_budget_mib * MIB,
        reduce_mean=reduce_mean,
    )
    terms = {
        "per_sample_entropy": out.per_sample_entropy,
        "codebook_entropy": out.codebook_entropy,
        "entropy_loss": out.aux_loss,
        "commitment_loss": out.commitment,
    }
    return Quantized(out.quantized, lfq_indices(_in_order(config, latents)), terms)


def _ibq(
    config: IBQConfig, latents: Float[Tensor, "B h w D"], codebook: Codebook, reduce_mean: ReduceMean | None
) -> Quantized:
    out = ibq(
        latents,
        _required(codebook),
        beta=config.beta,
        use_entropy=config.use_entropy,
        temperature=config.temperature,
        sample_weight=config.sample_entropy_weight,
        batch_weight=config.batch_entropy_weight,
        memory_budget_bytes=config.memory_budget_mib * MIB,
        reduce_mean=reduce_mean,
    )
    terms = {"quant_loss": out.quant_loss}
    if config.use_entropy:
        terms |= {
            "per_sample_entropy": out.sample_entropy,
            "codebook_entropy": out.average_entropy,
            "entropy_loss": out.entropy_loss,
        }
    return Quantized(out.quantized, out.indices, terms)


def encode_indices(
    config: QuantizerConfig, latents: Float[Tensor, "B h w D"], codebook: Codebook
) -> Int[Tensor, "B h w"]:
    """Ids only: no losses, and streaming over the codebook where there is one."""
    latents = at_least_float32(latents)
    if isinstance(config, LFQConfig):
        return lfq_indices(_in_order(config, latents))
    budget = config.memory_budget_mib * MIB
    if isinstance(config, IBQConfig):
        return ibq_encode(latents, _required(codebook), memory_budget_bytes=budget)
    return vq_encode(latents, _required(codebook), l2_normalize=config.l2_normalize, memory_budget_bytes=budget)


def lookup(config: QuantizerConfig, indices: Int[Tensor, "B h w"], codebook: Codebook) -> Float[Tensor, "B h w D"]:
    """The codes of these ids, as the decoder takes them."""
    if isinstance(config, LFQConfig):
        return _in_order(config, indices_to_codes(indices, config.code_dim))
    return codebook_lookup(indices, _required(codebook))


def code_indices(config: QuantizerConfig, codes: Float[Tensor, "B h w D"], codebook: Codebook) -> Int[Tensor, "B h w"]:
    """Ids of exact codes, the inverse of `lookup`: nearest by distance, which an inner product need not be."""
    if isinstance(config, LFQConfig):
        return lfq_indices(_in_order(config, codes))
    return vq_encode(codes, _required(codebook), memory_budget_bytes=config.memory_budget_mib * MIB)


def _in_order(config: LFQConfig, channels: Float[Tensor, "B h w D"]) -> Float[Tensor, "B h w D"]:
    """Channels with the least significant bit first, from those of a code, and back."""
    return channels.flip(-1) if config.bit_order == "msb_first" else channels


def _required(codebook: Codebook) -> Float[Tensor, "K D"]:
    assert codebook is not None, "this quantizer has a learned codebook"
    return codebook
