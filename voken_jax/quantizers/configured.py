"""The configured quantizer between encoder and decoder: one call for training, two small ones for inference.

Shape legend: B batch, h/w tokens, D code dimension, K codes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from voken_common.config.schema.quantizer import IBQConfig, LFQConfig, QuantizerConfig
from voken_jax.quantizers.ibq import IBQOutput, codebook_lookup, ibq, ibq_encode
from voken_jax.quantizers.lfq import indices_to_codes, lfq, lfq_indices
from voken_jax.quantizers.sharded import ibq_sharded
from voken_jax.quantizers.vq import vq, vq_encode

MIB = 2**20
Codebook = Float[Array, "K D"] | None


class Quantized(NamedTuple):
    """Codes for the decoder (with the straight-through gradient), ids, and unweighted terms by name."""

    codes: Float[Array, "B h w D"]
    indices: Int[Array, "B h w"]
    terms: dict[str, Float[Array, ""]]


def quantize(
    config: QuantizerConfig, latents: Float[Array, "B h w D"], codebook: Codebook, mesh: Mesh | None = None
) -> Quantized:
    """Quantize with all training terms, computed in float32 at least."""
    latents = _wide(latents)
    budget = config.memory_budget_mib * MIB
    if isinstance(config, LFQConfig):
        out = lfq(
            latents,
            temperature=config.temperature,
            sample_weight=config.sample_entropy_weight,
            batch_weight=config.batch_entropy_weight,
            block_bytes=budget,
        )
        terms = {
            "per_sample_entropy": out.per_sample_entropy,
            "codebook_entropy": out.codebook_entropy,
            "entropy_loss": out.aux_loss,
            "commitment_loss": out.commitment,
        }
        return Quantized(out.quantized, lfq_indices(_in_order(config, latents)), terms)
    if isinstance(config, IBQConfig):
        return _ibq(config, latents, codebook, mesh)
    found = vq(
        latents,
        _required(codebook),
        beta=config.beta,
        legacy=config.legacy,
        l2_normalize=config.l2_normalize,
        memory_budget_bytes=budget,
    )
    return Quantized(found.quantized, found.indices, {"quant_loss": found.loss})


def _ibq(config: IBQConfig, latents: Float[Array, "B h w D"], codebook: Codebook, mesh: Mesh | None) -> Quantized:
    run: Callable[..., IBQOutput] = ibq
    if config.shard_codes and mesh is not None and mesh.shape["model"] > 1:
        run = functools.partial(ibq_sharded, mesh=mesh)
    out = run(
        latents,
        _required(codebook),
        beta=config.beta,
        use_entropy=config.use_entropy,
        temperature=config.temperature,
        sample_weight=config.sample_entropy_weight,
        batch_weight=config.batch_entropy_weight,
        memory_budget_bytes=config.memory_budget_mib * MIB,
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
    config: QuantizerConfig, latents: Float[Array, "B h w D"], codebook: Codebook
) -> Int[Array, "B h w"]:
    """Ids only: no losses, and streaming over the codebook where there is one."""
    latents = _wide(latents)
    if isinstance(config, LFQConfig):
        return lfq_indices(_in_order(config, latents))
    budget = config.memory_budget_mib * MIB
    if isinstance(config, IBQConfig):
        return ibq_encode(latents, _required(codebook), memory_budget_bytes=budget)
    return vq_encode(latents, _required(codebook), l2_normalize=config.l2_normalize, memory_budget_bytes=budget)


def lookup(config: QuantizerConfig, indices: Int[Array, "B h w"], codebook: Codebook) -> Float[Array, "B h w D"]:
    """The codes of these ids, as the decoder takes them."""
    if isinstance(config, LFQConfig):
        return _in_order(config, indices_to_codes(indices, config.code_dim))
    return codebook_lookup(indices, _required(codebook))


def code_indices(config: QuantizerConfig, codes: Float[Array, "B h w D"], codebook: Codebook) -> Int[Array, "B h w"]:
    """Ids of exact codes, the inverse of `lookup`: nearest by distance, which an inner product need not be."""
    if isinstance(config, LFQConfig):
        return lfq_indices(_in_order(config, codes))
    return vq_encode(codes, _required(codebook), memory_budget_bytes=config.memory_budget_mib * MIB)


def _wide(latents: Float[Array, "B h w D"]) -> Float[Array, "B h w D"]:
    return latents.astype(jnp.promote_types(latents.dtype, jnp.float32))


def _in_order(config: LFQConfig, channels: Float[Array, "B h w D"]) -> Float[Array, "B h w D"]:
    """Channels with the least significant bit first, from those of a code, and back."""
    return jnp.flip(channels, -1) if config.bit_order == "msb_first" else channels


def _required(codebook: Codebook) -> Float[Array, "K D"]:
    assert codebook is not None, "this quantizer has a learned codebook"
    return codebook
