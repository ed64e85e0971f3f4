"""One set of weights of any checkpoint, with what the checkpoint says about itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from voken_common.checkpoints.conversion.contents import Manifest, Shape
from voken_common.checkpoints.conversion.safetensors_file import is_safetensors, read_label, read_safetensors
from voken_common.checkpoints.hub.resolve import Resolved, resolve
from voken_common.checkpoints.steps import ITEMS, Meta, Step, Weights
from voken_common.config.inference import Precision, for_inference
from voken_common.config.loading import AnyConfig
from voken_common.config.schema.generator import GeneratorConfig
from voken_torch.checkpoints.torch import find_step, load_generator, read, read_meta
from voken_torch.models.autoencoder import Autoencoder
from voken_torch.models.generator import build_generator


class Loaded(NamedTuple):
    """Weights that were read, with their description.

    Attributes:
        meta: what the checkpoint says about itself.
        weights: by name, on the CPU.
        path: the step's file.
        resolved: where it came from.
        kind: the set of weights.
    """

    meta: Meta
    weights: dict[str, Tensor]
    path: Path
    resolved: Resolved
    kind: Weights

    @property
    def source(self) -> str:
        """Describe the source for people: the step of a work directory, else `Resolved.source`."""
        return str(self.path) if self.resolved.path.is_dir() else self.resolved.source


def load(
    checkpoint: str | Path,
    *,
    step: Step = "latest",
    weights: Weights | None = None,
    config: str | Path | None = None,
    verify: bool = True,
    precision: Precision = "float32",
) -> Loaded:
    """Read a checkpoint for inference.

    Args:
        checkpoint: a path, a published model, or a repository of the hub: see `hub.resolve.resolve`.
        step: which step of a work directory.
        weights: `ema` (averages), `raw`, or None: the averages if there are any.
        config: a YAML file or a published model, where a foreign file does not say what it is.
        verify: whether to verify the checksums of the file.
        precision: of the configuration that is returned, whatever the model was trained in; weights are as it says.

    Raises:
        CheckpointError: there is no such checkpoint, it is damaged, or it cannot be read.
    """
    found = resolve(checkpoint, "torch", inference_manifest, step=step, weights=weights, config=config, verify=verify)
    path = find_step(found.path, step, verify=verify)
    if not is_safetensors(path):
        meta = _for_inference(read_meta(path), precision)
        kind: Weights = weights or ("ema" if ITEMS["ema"] in read(path) else "raw")
        return Loaded(meta, load_generator(path, weights), path, found, kind)
    meta, arrays = read_safetensors(path, weights, verify=verify)
    meta = _for_inference(meta, precision)
    dtype = meta.config.precision.param_dtype
    return Loaded(meta, {name: _tensor(array, dtype) for name, array in arrays.items()}, path, found, read_label(path))


def _for_inference(meta: Meta, precision: Precision) -> Meta:
    return dataclasses.replace(meta, config=for_inference(meta.config, precision))


def inference_manifest(config: AnyConfig) -> Manifest:
    """Names and shapes of what inference needs: the autoencoder with its quantizer, or the transformer."""
    with torch.device("meta"):
        network: nn.Module = (
            build_generator(config.model)
            if isinstance(config, GeneratorConfig)
            else Autoencoder(config.model, config.quantizer)
        )
    return Manifest({name: Shape(tuple(value.shape)) for name, value in network.state_dict().items()})


def _tensor(array: np.ndarray, dtype: str) -> Tensor:
    """A tensor of an array's values, which shares its memory where the type is the same."""
    return torch.from_numpy(array if array.dtype.name == dtype else array.astype(dtype))
