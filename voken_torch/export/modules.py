"""Encoder with quantizer, and decoder, as plain modules that exporters can trace at any batch and image size.

The library's own search for the nearest code cuts tokens into blocks that fit a memory budget, which depends on their
number; here only the codebook is cut, so that the number of tokens may stay open. Ids are the same.

Shape legend: B batch, H/W pixels, h/w tokens.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from voken_common.config.schema.quantizer import LFQConfig, VQConfig
from voken_torch.device.kernels import at_least_float32
from voken_torch.tokenizer.api import Tokenizer

CODES = 16384
"""Codes that are compared with all tokens at once."""


class Encoder(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] to ids (B, h, w) int64, quantizer included."""

    powers: Tensor

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        self.network, self.config = tokenizer.network, tokenizer.config.quantizer
        self.register_buffer("powers", 2 ** torch.arange(self.config.code_dim), persistent=False)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Int[Tensor, "B h w"]:
        """Encode and quantize."""
        latents = at_least_float32(self.network.encode(images))
        if isinstance(self.config, LFQConfig):
            return ((latents > 0).to(torch.int64) * self.powers).sum(-1)
        normalize = isinstance(self.config, VQConfig) and self.config.l2_normalize
        distance = isinstance(self.config, VQConfig)
        if normalize:
            latents = F.normalize(latents, dim=-1)
        best: Tensor | None = None
        ids: Tensor | None = None
        for start, codes in _chunks(self.network.codebook):
            codes = F.normalize(codes, dim=-1) if normalize else codes
            scores = latents @ codes.T
            if distance:
                scores = 2 * scores - (codes * codes).sum(-1)
            highest, found = scores.max(-1)
            if best is None or ids is None:
                best, ids = highest, found
            else:
                # The first of equal codes stays.
                better = highest > best
                best, ids = torch.where(better, highest, best), torch.where(better, found + start, ids)
        assert ids is not None
        return ids


class Decoder(nn.Module):
    """Ids (B, h, w) of an integer type to images (B, 3, H, W) in [-1, 1]."""

    powers: Tensor

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        self.network, self.config = tokenizer.network, tokenizer.config.quantizer
        self.register_buffer("powers", 2 ** torch.arange(self.config.code_dim), persistent=False)

    def forward(self, ids: Int[Tensor, "B h w"]) -> Float[Tensor, "B 3 H W"]:
        """Look up the codes and decode them."""
        if isinstance(self.config, LFQConfig):
            bits = (ids.unsqueeze(-1) // self.powers) % 2
            codes = (2 * bits - 1).to(next(self.network.parameters()).dtype)
        else:
            codebook = self.network.codebook
            assert codebook is not None, "this quantizer has a learned codebook"
            codes = F.embedding(ids, codebook)
        return self.network.decode(codes).clamp(-1, 1)


def _chunks(codebook: Tensor | None) -> list[tuple[int, Tensor]]:
    assert codebook is not None, "this quantizer has a learned codebook"
    return [(start, codebook[start : start + CODES]) for start in range(0, codebook.shape[0], CODES)]
