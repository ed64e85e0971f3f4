"""One set of weights of any checkpoint that JAX reads, with what the checkpoint says about itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from voken_common.checkpoints.conversion.safetensors_file import is_safetensors, read_safetensors
from voken_common.checkpoints.steps import Meta, Step, Weights
from voken_common.checkpoints.weight_names import to_jax
from voken_common.errors import CheckpointError
from voken_jax.checkpoints.orbax import find_step, load_generator, read_meta
from voken_jax.models.functional import Network


class Loaded(NamedTuple):
    """What was read.

    Attributes:
        meta: what the checkpoint says about itself.
        weights: by dotted name.
        path: the step's folder, or the file.
    """

    meta: Meta
    weights: dict[str, jax.Array]
    path: Path


def load(
    checkpoint: str | Path,
    network_of: Callable[[Meta], Network],
    *,
    step: Step = "latest",
    weights: Weights | None = None,
    verify: bool = True,
) -> Loaded:
    """Read a checkpoint for inference.

    Args:
        checkpoint: a work directory, the folder of one step, or a .safetensors file of voken.
        network_of: the network whose weights these are; it raises CheckpointError for a checkpoint of another kind.
        step: which step of a work directory.
        weights: `ema` (averages) or `raw`; None: averages if there are any, and what a .safetensors file holds.
        verify: whether to verify the checksums of what is read.

    Raises:
        CheckpointError: there is no such checkpoint, it is damaged, or it cannot be read.
    """
    path = Path(checkpoint)
    if not path.is_file():
        folder = find_step(path, step, weights=weights, verify=None if verify else False)
        meta = read_meta(folder)
        return Loaded(meta, load_generator(folder, network_of(meta).parameters, weights), folder)
    if not is_safetensors(path):
        raise CheckpointError(
            f"{path} is neither a directory nor a .safetensors file: `voken-convert {path} DIRECTORY` makes one of "
            "other checkpoints"
        )
    meta, arrays = read_safetensors(path, weights, verify=verify)
    network_of(meta)
    dtype = jnp.dtype(meta.config.precision.param_dtype)
    return Loaded(meta, {name: jnp.asarray(array, dtype) for name, array in to_jax(arrays).items()}, path)
