"""List the weights of a configuration's networks under torch names; nothing is allocated."""

from __future__ import annotations

import jax

from voken_common.checkpoints.conversion.contents import Manifest
from voken_common.config.loading import AnyConfig
from voken_common.config.schema.generator import GeneratorConfig
from voken_jax.checkpoints.load import torch_shapes
from voken_jax.tokenizer.state import build_generator_network, build_players


def manifest_of(config: AnyConfig) -> Manifest:
    """Names and shapes of the networks of a configuration."""
    precision = config.precision
    with jax.enable_x64("float64" in (precision.param_dtype, precision.compute_dtype)):
        if isinstance(config, GeneratorConfig):
            return Manifest(torch_shapes(build_generator_network(config).parameters))
        players = build_players(config)
    assert not players.autoencoder.buffers, "checkpoints have no place for buffers of the autoencoder"
    return Manifest(
        generator=torch_shapes(players.autoencoder.parameters),
        discriminator=torch_shapes(players.discriminator.parameters),
        buffers=torch_shapes(players.discriminator.buffers),
    )
