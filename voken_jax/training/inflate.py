"""An image tokenizer's checkpoint inflated into the weights of a video tokenizer."""

from __future__ import annotations

import logging

import jax
import numpy as np

from voken_common.checkpoints.inflation import inflate
from voken_common.checkpoints.steps import Weights
from voken_common.checkpoints.weight_names import to_jax, to_torch, to_torch_layout, to_torch_name
from voken_common.config.schema.tokenizer import Config
from voken_common.errors import CheckpointError
from voken_jax.checkpoints.load import load
from voken_jax.tokenizer.state import TrainState, build_autoencoder

logger = logging.getLogger("voken")


def config_of(checkpoint: str) -> Config:
    """Read the configuration of a tokenizer's checkpoint."""
    return load(checkpoint, lambda meta: build_autoencoder(meta.tokenizer)).meta.tokenizer


def inflated(checkpoint: str, config: Config, weights: Weights | None = None) -> dict[str, np.ndarray]:
    """Weights of the video tokenizer `config`, under torch names and in torch's layout.

    Args:
        checkpoint: of an image tokenizer, or a published one's name.
        config: of the video tokenizer.
        weights: which set; None: the averages if there are any.

    Raises:
        CheckpointError: no such checkpoint, or not one of an image tokenizer.
        NameMismatch: an image tokenizer of another shape.
    """
    found = load(checkpoint, lambda meta: build_autoencoder(meta.tokenizer), weights=weights)
    if found.meta.tokenizer.model.is_video:
        raise CheckpointError(f"{checkpoint} is a video tokenizer already: inflate an image tokenizer")
    image = to_torch({name: np.asarray(leaf) for name, leaf in found.weights.items()})
    return inflate(image, video_shapes(config), checkpoint)


def video_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Torch names and shapes of a tokenizer's weights."""
    parameters = build_autoencoder(config).parameters
    return {
        to_torch_name(path): to_torch_layout(path, np.broadcast_to(np.int8(0), leaf.shape)).shape
        for path, leaf in parameters.items()
    }


def inflated_state(config: Config, state: TrainState) -> TrainState:
    """The state with the weights and averages that `initialize.inflate` names; itself where that is empty."""
    if (checkpoint := config.initialize.inflate) is None:
        return state
    averages = inflated(checkpoint, config)
    try:
        raw = inflated(checkpoint, config, "raw")
    except CheckpointError:
        raw = averages
    logger.info("the autoencoder starts as %s, inflated", checkpoint)
    return state.replace(generator=_like(raw, state.generator), generator_ema=_like(averages, state.generator_ema))


def _like(arrays: dict[str, np.ndarray], own: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Weights placed as a state's are."""
    return {name: _placed(np.asarray(array, own[name].dtype), own[name]) for name, array in to_jax(arrays).items()}


def _placed(array: np.ndarray, own: jax.Array) -> jax.Array:
    return jax.make_array_from_callback(array.shape, own.sharding, lambda index: array[index])
