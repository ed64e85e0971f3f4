"""The autoencoder around a quantizer: encoder, quantizer parameters if any, decoder, under the published names.

Shape legend: B batch, S pixels (H W of images, T H W of clips), s tokens (h w, or t h w), Z latent channels,
D code dimension, K codes, C features.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from voken_common.config.schema.model import ModelConfig
from voken_common.config.schema.quantizer import LFQConfig, QuantizerConfig
from voken_jax.models import magvit2, vqgan
from voken_jax.models.layers import Policy, conv, subkey


class Codebook(nnx.Module):
    """The learned codes: standard normal for IBQ, uniform in +-1/K for VQ."""

    def __init__(self, config: QuantizerConfig, *, policy: Policy, rngs: nnx.Rngs):
        shape = (config.codebook_size, config.code_dim)
        if config.kind == "ibq":
            codes = jax.random.normal(rngs.params(), shape, policy.param_dtype)
        else:
            bound = 1.0 / config.codebook_size
            codes = jax.random.uniform(rngs.params(), shape, policy.param_dtype, -bound, bound)
        self.embedding = nnx.Param(codes)


class Autoencoder(nnx.Module):
    """Encoder and decoder; the quantizer itself is a pure function that the caller applies in between."""

    def __init__(self, model: ModelConfig, quantizer: QuantizerConfig, *, policy: Policy, rngs: nnx.Rngs):
        network = vqgan if model.network == "vqgan" else magvit2
        self.encoder = network.Encoder(model, policy=policy, rngs=rngs)
        self.decoder = network.Decoder(model, policy=policy, rngs=rngs)
        self.stochastic = model.dropout > 0
        self.dtype = policy.compute_dtype
        if not isinstance(quantizer, LFQConfig):
            self.quantize = nnx.Dict(embedding=Codebook(quantizer, policy=policy, rngs=rngs))
            self.quant_conv = conv(model.z_channels, quantizer.code_dim, 1, policy=policy, rngs=rngs)
            self.post_quant_conv = conv(quantizer.code_dim, model.z_channels, 1, policy=policy, rngs=rngs)

    @property
    def codebook(self) -> Float[Array, "K D"] | None:
        """The learned codes in parameter precision, or None (LFQ)."""
        return self.quantize["embedding"].embedding[...] if hasattr(self, "quantize") else None

    def encode(self, x: Float[Array, "B *S 3"], key: PRNGKeyArray | None = None) -> Float[Array, "B *s D"]:
        """Latents before quantization; x in [-1, 1]. A key switches dropout on."""
        x = x.astype(self.dtype)
        latents = self.encoder(x, subkey(key, 0)) if self.stochastic else self.encoder(x)
        return self.quant_conv(latents) if hasattr(self, "quant_conv") else latents

    def features(self, codes: Float[Array, "B *s D"], key: PRNGKeyArray | None = None) -> Float[Array, "B *S C"]:
        """Compute the input of the decoder's last convolution."""
        codes = codes.astype(self.dtype)
        if hasattr(self, "post_quant_conv"):
            codes = self.post_quant_conv(codes)
        return self.decoder.features(codes, subkey(key, 1)) if self.stochastic else self.decoder.features(codes)

    def decode(self, codes: Float[Array, "B *s D"]) -> Float[Array, "B *S 3"]:
        """Pixels, unclamped, in float32 at least."""
        images = self.decoder.conv_out(self.features(codes))
        return images.astype(jnp.promote_types(images.dtype, jnp.float32))
