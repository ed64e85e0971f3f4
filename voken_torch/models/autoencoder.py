"""The autoencoder around a quantizer: encoder, quantizer parameters if any, decoder, under the published names.

Pixels are channels first, as PyTorch's networks are; latents and codes are code dimension last, as the quantizers take
them in both frameworks. Shape legend: B batch, S pixels (H W of images, T H W of clips), s tokens (h w, or t h w),
D code dimension, K codes, C features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from jaxtyping import Float
from torch import Tensor, nn

from voken_common.config.schema.model import ModelConfig
from voken_common.config.schema.quantizer import LFQConfig, QuantizerConfig
from voken_torch.device.kernels import at_least_float32
from voken_torch.models import magvit2, vqgan
from voken_torch.models.layers import Policy, conv

CODEBOOK = "quantize.embedding.weight"


class Quantized(Protocol):
    """The parts of a quantizer's result that the decoder and the losses use."""

    @property
    def codes(self) -> Float[Tensor, "B *s D"]:
        """Chosen codes."""

    @property
    def terms(self) -> dict[str, Tensor]:
        """Unweighted terms by name."""


def build_codebook(config: QuantizerConfig) -> nn.Embedding:
    """The learned codes: standard normal for IBQ, uniform in +-1/K for VQ."""
    codebook = nn.Embedding(config.codebook_size, config.code_dim)
    if config.kind == "vq":
        nn.init.uniform_(codebook.weight, -1 / config.codebook_size, 1 / config.codebook_size)
    return codebook


class Autoencoder(nn.Module):
    """Encoder and decoder; the quantizer itself is a function that the caller applies in between."""

    def __init__(self, model: ModelConfig, quantizer: QuantizerConfig, policy: Policy | None = None):
        super().__init__()
        policy = policy or Policy()
        network = vqgan if model.network == "vqgan" else magvit2
        self.encoder = network.Encoder(model, policy)
        self.decoder = network.Decoder(model, policy)
        self.stochastic = model.dropout > 0
        if not isinstance(quantizer, LFQConfig):
            self.quantize = nn.ModuleDict({"embedding": build_codebook(quantizer)})
            self.quant_conv = conv(model.z_channels, quantizer.code_dim, 1)
            self.post_quant_conv = conv(quantizer.code_dim, model.z_channels, 1)

    @property
    def codebook(self) -> Float[Tensor, "K D"] | None:
        """The learned codes in parameter precision, or None (LFQ)."""
        return self.get_parameter(CODEBOOK) if hasattr(self, "quantize") else None

    def forward(
        self, x: Float[Tensor, "B 3 *S"], quantize: Callable[[Tensor, Tensor | None], Quantized]
    ) -> tuple[Float[Tensor, "B 3 *S"], dict[str, Tensor]]:
        """Reconstruction and the quantizer's terms in one call, as parallel training wants it.

        `quantize` takes latents and codebook.
        """
        quantized = quantize(self.encode(x), self.codebook)
        return self.decode(quantized.codes), quantized.terms

    def encode(self, x: Float[Tensor, "B 3 *S"]) -> Float[Tensor, "B *s D"]:
        """Latents before quantization; x in [-1, 1]."""
        latents = self.encoder(x)
        if hasattr(self, "quant_conv"):
            latents = self.quant_conv(latents)
        return latents.movedim(1, -1)

    def features(self, codes: Float[Tensor, "B *s D"]) -> Float[Tensor, "B C *S"]:
        """Compute the input of the decoder's last convolution."""
        codes = codes.movedim(-1, 1)
        if hasattr(self, "post_quant_conv"):
            codes = self.post_quant_conv(codes)
        return self.decoder.features(codes)

    def decode(self, codes: Float[Tensor, "B *s D"]) -> Float[Tensor, "B 3 *S"]:
        """Pixels, unclamped, in float32 at least."""
        return at_least_float32(self.decoder.conv_out(self.features(codes)))
