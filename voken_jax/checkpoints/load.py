"""One set of weights of any checkpoint, with what the checkpoint says about itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from voken_common.checkpoints import weight_names as names
from voken_common.checkpoints.conversion.contents import Manifest, Shape
from voken_common.checkpoints.conversion.safetensors_file import is_safetensors, read_label, read_safetensors
from voken_common.checkpoints.hub.resolve import Resolved, resolve
from voken_common.checkpoints.steps import ITEMS, Meta, Step, Weights
from voken_common.config.inference import Precision, for_inference
from voken_common.config.loading import AnyConfig
from voken_common.config.schema.generator import GeneratorConfig
from voken_common.errors import CheckpointError
from voken_jax.checkpoints.orbax import find_step, load_generator, read_meta
from voken_jax.models.autoencoder import Autoencoder
from voken_jax.models.functional import Network
from voken_jax.models.generator import build_generator
from voken_jax.models.layers import Policy


class Loaded(NamedTuple):
    """Weights that were read, with their description.

    Attributes:
        meta: what the checkpoint says about itself.
        weights: by dotted name.
        path: the step's folder, or the file.
        resolved: where it came from.
        kind: the set of weights.
    """

    meta: Meta
    weights: dict[str, jax.Array]
    path: Path
    resolved: Resolved
    kind: Weights

    @property
    def source(self) -> str:
        """Describe the source for people: the step of a work directory, else `Resolved.source`."""
        return str(self.path) if self.resolved.path.is_dir() else self.resolved.source


def load(
    checkpoint: str | Path,
    network_of: Callable[[Meta], Network],
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
        network_of: the network whose weights these are; it raises CheckpointError for a checkpoint of another kind.
        step: which step of a work directory.
        weights: `ema` (averages) or `raw`; None: averages if there are any, and what a .safetensors file holds.
        config: a YAML file or a published model, where a foreign file does not say what it is.
        verify: whether to verify the checksums of what is read.
        precision: of the configuration that is returned, whatever the model was trained in; weights are as it says.

    Raises:
        CheckpointError: there is no such checkpoint, it is damaged, or it cannot be read.
    """
    found = resolve(checkpoint, "jax", inference_manifest, step=step, weights=weights, config=config, verify=verify)
    path = found.path
    if not path.is_file():
        folder = find_step(path, step, weights=weights, verify=None if verify else False)
        meta = _for_inference(read_meta(folder), precision)
        kind: Weights = weights or ("ema" if (folder / ITEMS["ema"]).is_dir() else "raw")
        return Loaded(meta, load_generator(folder, network_of(meta).parameters, weights), folder, found, kind)
    if not is_safetensors(path):
        raise CheckpointError(f"{path} is no checkpoint that can be read")
    meta, arrays = read_safetensors(path, weights, verify=verify)
    meta = _for_inference(meta, precision)
    network_of(meta)
    return Loaded(meta, _placed(arrays, jnp.dtype(meta.config.precision.param_dtype)), path, found, read_label(path))


def _for_inference(meta: Meta, precision: Precision) -> Meta:
    if precision == "float64" and jax.dtypes.canonicalize_dtype(np.float64) != np.float64:
        raise ValueError("precision float64: JAX computes in 32 bits; call jax.config.update('jax_enable_x64', True)")
    return dataclasses.replace(meta, config=for_inference(meta.config, precision))


def inference_manifest(config: AnyConfig) -> Manifest:
    """Torch names and shapes of what inference needs: the autoencoder with its quantizer, or the transformer."""
    if isinstance(config, GeneratorConfig):
        network = Network(lambda rngs: build_generator(config.model, policy=Policy(), rngs=rngs))
    else:
        network = Network(lambda rngs: Autoencoder(config.model, config.quantizer, policy=Policy(), rngs=rngs))
    return Manifest(torch_shapes(network.parameters))


def torch_shapes(leaves: Mapping[str, Any]) -> dict[str, Shape]:
    """Torch names and shapes of leaves by dotted name; they may be shapes alone."""
    unit = np.int8(0)
    layouts = {path: names.to_torch_layout(path, np.broadcast_to(unit, leaf.shape)) for path, leaf in leaves.items()}
    return {names.to_torch_name(path): Shape(view.shape) for path, view in layouts.items()}


def _placed(arrays: dict[str, np.ndarray], dtype: jnp.dtype) -> dict[str, jax.Array]:
    """Arrays under torch names as those of JAX, one after the other: memory holds hardly more than one copy."""
    result = {}
    for key in list(arrays):
        array = arrays.pop(key)
        path = names.to_jax_name(key, array.ndim)
        result[path] = jnp.asarray(names.to_jax_layout(path, array), dtype)
    return result
