"""One set of weights of any checkpoint that PyTorch reads, with what the checkpoint says about itself."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from voken_common.checkpoints.conversion.safetensors_file import is_safetensors, read_safetensors
from voken_common.checkpoints.steps import Meta, Step, Weights
from voken_torch.checkpoints.torch import find_step, load_generator, read_meta


class Loaded(NamedTuple):
    """What was read.

    Attributes:
        meta: what the checkpoint says about itself.
        weights: by name, on the CPU.
        path: the step's file.
    """

    meta: Meta
    weights: dict[str, Tensor]
    path: Path


def load(
    checkpoint: str | Path, *, step: Step = "latest", weights: Weights | None = None, verify: bool = True
) -> Loaded:
    """Read a checkpoint for inference.

    Args:
        checkpoint: a work directory, a checkpoint file, or a .safetensors file of voken.
        step: which step of a work directory.
        weights: `ema` (averages), `raw`, or None: the averages if there are any.
        verify: whether to verify the checksums of the file.

    Raises:
        CheckpointError: there is no such checkpoint, it is damaged, or it cannot be read.
    """
    path = find_step(checkpoint, step, verify=verify)
    if not is_safetensors(path):
        return Loaded(read_meta(path), load_generator(path, weights), path)
    meta, arrays = read_safetensors(path, weights, verify=verify)
    precision = meta.config.precision.param_dtype
    dtype = getattr(torch, precision)
    tensors = {name: torch.tensor(array.astype(precision), dtype=dtype) for name, array in arrays.items()}
    return Loaded(meta, tensors, path)
