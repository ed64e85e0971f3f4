"""Sizes of a network, read off a few weights: cheap to compare with many configurations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from voken_common.config.loading import AnyConfig
from voken_common.config.schema.generator import GeneratorConfig
from voken_common.config.schema.quantizer import LFQConfig
from voken_common.config.schema.tokenizer import Config

_CODEBOOK = "quantize.embedding.weight"
_VIDEO = "encoder.conv_in.conv_1."
_LEVEL = re.compile(r"encoder\.down\.(\d+)\.block\.0\.conv1(\.conv_1)?\.weight$")
_BLOCK = re.compile(r"encoder\.down\.0\.block\.(\d+)\.conv1(\.conv_1)?\.weight$")
_LAYER = re.compile(r"(spatial_blocks|blocks|factorized_blocks)\.\d+\.attention_norm\.weight$")


class TokenizerSignature(NamedTuple):
    """Sizes of an autoencoder, read off a few weights; None if the weight is missing."""

    learned_codes: bool
    codebook_size: int | None
    code_dim: int | None
    channels: int | None
    channel_multipliers: tuple[int, ...]
    residual_blocks: int
    adaptive_norm: bool
    is_video: bool

    @classmethod
    def of_weights(cls, weights: Mapping[str, Any]) -> TokenizerSignature:
        """Read it off the generator's weights (values with a `shape`), by torch name."""
        codebook = _shape(weights, _CODEBOOK)
        first, latents = (
            _shape(weights, f"encoder.{name}.weight") or _shape(weights, f"encoder.{name}.conv_1.weight")
            for name in ("conv_in", "conv_out")
        )
        channels = first[0] if first else None
        widths = {int(m[1]): weights[key].shape[0] for key in weights if (m := _LEVEL.match(key))}
        multipliers = tuple(widths[level] // (channels or 1) for level in sorted(widths))
        blocks = sum(_BLOCK.match(key) is not None for key in weights)
        video = any(key.startswith(_VIDEO) for key in weights)
        rest = (channels, multipliers, blocks, any(key.startswith("decoder.adaptive.") for key in weights), video)
        if codebook:
            return cls(True, codebook[0], codebook[-1], *rest)
        bits = latents[0] if latents else None
        return cls(False, 2**bits if bits is not None and bits < 64 else None, bits, *rest)

    @classmethod
    def of_config(cls, config: AnyConfig) -> TokenizerSignature:
        """The one that the weights of a configuration have."""
        assert isinstance(config, Config)
        model, quantizer = config.model, config.quantizer
        return cls(
            not isinstance(quantizer, LFQConfig),
            quantizer.codebook_size,
            quantizer.code_dim,
            model.channels,
            model.channel_multipliers,
            model.residual_blocks,
            model.network != "vqgan" and model.adaptive_norm,
            model.is_video,
        )


class GeneratorSignature(NamedTuple):
    """Sizes of a transformer, read off a few weights; None if the weight is missing."""

    vocabularies: tuple[int, ...]
    width: int | None
    classes: int | None
    layers: int
    factorized_layers: int

    @classmethod
    def of_weights(cls, weights: Mapping[str, Any]) -> GeneratorSignature:
        """Read it off the transformer's weights (values with a `shape`), by torch name."""
        tables = [_shape(weights, f"{name}.weight") for name in ("tok_emb", "pre_emb", "post_emb")]
        labels = _shape(weights, "class_emb.embedding_table.weight")
        kinds = [found[1] for key in weights if (found := _LAYER.match(key))]
        inner = kinds.count("factorized_blocks")
        vocabularies = tuple(shape[0] for shape in tables if shape)
        # Of the labels the last one stands for no class.
        width, classes = (labels[-1], labels[0] - 1) if labels else (None, None)
        return cls(vocabularies, width, classes, len(kinds) - inner, inner)

    @classmethod
    def of_config(cls, config: AnyConfig) -> GeneratorSignature:
        """The one that the weights of a configuration have."""
        assert isinstance(config, GeneratorConfig)
        model = config.model
        return cls(model.vocabularies, model.width, model.classes, model.layers, model.factorized_layers)


Signature = TokenizerSignature | GeneratorSignature


def _shape(weights: Mapping[str, Any], key: str) -> tuple[int, ...]:
    return tuple(weights[key].shape) if key in weights else ()
