"""The configuration that the weights of an Open-MAGVIT2 tokenizer imply, where the file is of no published model.

Names and shapes tell all of that network that inference needs, and LFQ has no parameters. Of a learned codebook they do
not tell how codes are chosen (IBQ or VQ), so such files need their configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from voken_common.checkpoints.conversion.signatures import TokenizerSignature
from voken_common.config.loading import ConfigError, load_config, merge, validate
from voken_common.config.schema.tokenizer import Config
from voken_common.published.models import config_file, find

_LIKE = "imagenet_lfqgan_256_L"
_LIKE_2024 = "imagenet_lfqgan_256_B"


def inferred_config(weights: Mapping[str, Any], name: str) -> Config | None:
    """The configuration of the image network that these weights are of; None where they do not tell it.

    Settings of training, which nothing here needs, are those of the published model with that kind of network, as is
    the order of the bits of ids: the networks of June 2024 (without adaptive norm) have the most significant one first.

    Args:
        weights: the generator's, values with a `shape`, by torch name.
        name: for the configuration.
    """
    found = TokenizerSignature.of_weights(weights)
    if found.learned_codes or None in found or not found.channel_multipliers or found.is_video:
        return None
    pattern = load_config(config_file(find(_LIKE if found.adaptive_norm else _LIKE_2024)))
    changes = {
        "name": name,
        "model": {
            "channels": found.channels,
            "channel_multipliers": list(found.channel_multipliers),
            "residual_blocks": found.residual_blocks,
            "z_channels": found.code_dim,
        },
        "quantizer": {"codebook_size": found.codebook_size, "code_dim": found.code_dim, "token_bits": None},
    }
    try:
        return validate(merge(pattern.model_dump(mode="json"), changes), name)
    except ConfigError:
        return None
