"""An image tokenizer's checkpoint inflated into the weights of a video tokenizer."""

from __future__ import annotations

import logging

import numpy as np
import torch

from voken_common.checkpoints.inflation import inflate
from voken_common.checkpoints.steps import Weights
from voken_common.config.schema.tokenizer import Config
from voken_common.errors import CheckpointError
from voken_torch.checkpoints.load import load
from voken_torch.models.autoencoder import Autoencoder
from voken_torch.parallel.sharding import laid_out_like
from voken_torch.tokenizer.state import TrainState

logger = logging.getLogger("voken")


def config_of(checkpoint: str) -> Config:
    """Read the configuration of a tokenizer's checkpoint."""
    return load(checkpoint).meta.tokenizer


def inflated(checkpoint: str, config: Config, weights: Weights | None = None) -> dict[str, np.ndarray]:
    """Weights of the video tokenizer `config` by name.

    Args:
        checkpoint: of an image tokenizer, or a published one's name.
        config: of the video tokenizer.
        weights: which set; None: the averages if there are any.

    Raises:
        CheckpointError: no such checkpoint, or not one of an image tokenizer.
        NameMismatch: an image tokenizer of another shape.
    """
    found = load(checkpoint, weights=weights)
    if found.meta.tokenizer.model.is_video:
        raise CheckpointError(f"{checkpoint} is a video tokenizer already: inflate an image tokenizer")
    return inflate({k: v.numpy() for k, v in found.weights.items()}, video_shapes(config), checkpoint)


def video_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a tokenizer's weights."""
    with torch.device("meta"):
        network = Autoencoder(config.model, config.quantizer)
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}


@torch.no_grad()
def inflate_state(config: Config, state: TrainState) -> None:
    """Give a fresh state the weights and averages that `initialize.inflate` names; nothing where that is empty."""
    if (checkpoint := config.initialize.inflate) is None:
        return
    averages = inflated(checkpoint, config)
    try:
        raw = inflated(checkpoint, config, "raw")
    except CheckpointError:
        raw = averages
    for own, arrays in ((state.generator, raw), (state.generator_ema, averages)):
        for name, tensor in own.items():
            tensor.copy_(laid_out_like(tensor, torch.from_numpy(arrays[name])))
    logger.info("the autoencoder starts as %s, inflated", checkpoint)
