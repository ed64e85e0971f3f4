"""What weights the networks of a configuration have, under torch names; nothing is allocated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from voken_common.checkpoints import weight_names as names
from voken_common.checkpoints.conversion.contents import Manifest, Shape
from voken_common.config.generator import GeneratorConfig
from voken_common.config.loading import AnyConfig
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


def torch_shapes(leaves: Mapping[str, Any]) -> dict[str, Shape]:
    """Torch names and shapes of leaves by dotted name; they may be shapes alone."""
    unit = np.int8(0)
    layouts = {path: names.to_torch_layout(path, np.broadcast_to(unit, leaf.shape)) for path, leaf in leaves.items()}
    return {names.to_torch_name(path): Shape(view.shape) for path, view in layouts.items()}
