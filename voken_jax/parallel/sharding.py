"""The mesh and the partition rules: the only module that decides where arrays live."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from voken_common.config.loading import AnyConfig
from voken_common.config.schema.run import MeshConfig
from voken_common.config.schema.tokenizer import Config

AXES = ("data", "fsdp", "model")
SAMPLES = ("data", "fsdp")
"""What the leading axis of everything that has a batch is split over."""
BATCH = P(SAMPLES)


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """Arrange the devices along (data, fsdp, model).

    Raises:
        ValueError: the axis sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    rest, count = config.fsdp * config.model, len(devices)
    data = count // rest if config.data == -1 else config.data
    if data < 1 or data * rest != count:
        raise ValueError(
            f"mesh.data {config.data} x mesh.fsdp {config.fsdp} x mesh.model {config.model} does not use the {count} "
            "device(s) found exactly; data -1 takes what is left when fsdp * model divides the count"
        )
    grid = np.asarray(devices).reshape(data, config.fsdp, config.model)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_shards(mesh: Mesh) -> int:
    """Count the parts into which the batch is split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def local_rows(array: jax.Array) -> np.ndarray:
    """The rows that this process brought of an array that is split along its first axis, and nothing else."""
    if array.is_fully_addressable:
        return np.asarray(array)
    # Devices along `model` hold the same rows.
    rows = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(rows[start]) for start in sorted(rows)])


def check_batch(config: AnyConfig, mesh: Mesh) -> None:
    """Raise ValueError unless every device gets the same number of samples of every micro-batch."""
    shards, accumulate = batch_shards(mesh), config.optimizer.gradient_accumulation
    if shards % jax.process_count():
        raise ValueError(
            f"mesh.data x mesh.fsdp is {shards}, which {jax.process_count()} processes cannot share evenly: each reads "
            "samples of its own, so mesh.model has to fit into the devices of one"
        )
    for key, size, parts in (
        ("training.batch_size", config.training.batch_size, shards * accumulate),
        ("validation.batch_size", config.validation.batch_size, shards),
    ):
        if size % parts:
            raise ValueError(
                f"{key} {size} is not divisible by {parts} (devices along data and fsdp: {shards}"
                + (f", optimizer.gradient_accumulation: {accumulate}" if parts != shards else "")
                + f"); the nearest that is: {max(parts, round(size / parts) * parts)}"
            )


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Split along the first axis, that of the batch."""
    return NamedSharding(mesh, BATCH)


def constrain(x: Array, *axes: str | tuple[str, ...] | None) -> Array:
    """State where an activation lives, if the program is traced inside `jax.sharding.use_abstract_mesh`.

    Without such a statement the partitioner may as well gather a batch as a weight.

    Args:
        x: any array.
        axes: of the mesh, for each of its axes as in PartitionSpec; what is left out is whole on every device.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, P(*axes))


def weight_spec(name: str, shape: tuple[int, ...], mesh: Mesh, shard_codes: bool) -> P:
    """Return the partition of one weight (or of its moments or average).

    The codebook is split over `model` by codes when `shard_codes`; everything else is split over `fsdp` along its
    largest axis that divides, and is whole on every device when fsdp is 1.
    """
    fsdp = mesh.shape["fsdp"]
    if name.endswith("quantize.embedding.embedding") and shard_codes:
        return P("model")
    candidates = [axis for axis, size in enumerate(shape) if fsdp > 1 and size % fsdp == 0 and size >= 2 * fsdp]
    if not candidates:
        return P()
    axis = max(candidates, key=lambda a: shape[a])
    return P(*(("fsdp",) if i == axis else (None,) for i in range(axis + 1)))


COLUMNS = ("wqkv.kernel", "w1.kernel", "w3.kernel", "head.kernel", "head.0.kernel", "head.1.kernel")
"""Kernels of a generator whose outputs (attention heads, hidden features, codes) are split over `model`."""
ROWS = ("wo.kernel", "w2.kernel")
"""Kernels whose inputs are what the former give."""


def generator_spec(name: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """Return the partition of one weight of a generator (or of its moments or average).

    Over `model`: attention by heads, the feed-forward layer by hidden features, the last layer by codes, so that the
    products of a block need one sum over `model` each. Over `fsdp`: the other axis. The class's modulation, a third of
    an adaptive model, is split by its inputs over both, since its features meet everywhere; embeddings by features.
    Tensors of one dimension are whole on every device, and so is an axis that does not divide. Weights of all layers in
    one array (`*` in the name) have a leading axis more, which is not split.
    """
    if ".*." in name:
        return P(None, *generator_spec(name.replace(".*.", ".0."), shape[1:], mesh))
    if len(shape) != 2:
        return P()
    axes: tuple[Any, Any] = (None, "fsdp")
    if name.endswith(COLUMNS):
        axes = ("fsdp", "model")
    elif name.endswith(ROWS):
        axes = ("model", "fsdp")
    elif name.endswith("ada_lin.1.kernel"):
        axes = (("fsdp", "model"), None)
    return P(
        *(axis if axis and size % _devices(mesh, axis) == 0 else None for axis, size in zip(axes, shape, strict=True))
    )


def _devices(mesh: Mesh, axis: str | tuple[str, ...]) -> int:
    return math.prod(mesh.shape[a] for a in ((axis,) if isinstance(axis, str) else axis))


def state_shardings(abstract: Any, mesh: Mesh, config: AnyConfig) -> Any:
    """A NamedSharding for every leaf of a training state, by the weight's name at the end of its path."""

    def of(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = [str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        if not names:
            per_device = isinstance(config, Config) and config.statistics_scope == "per_device"
            lecam = any(getattr(entry, "name", None) == "lecam" for entry in path)
            return NamedSharding(mesh, P("data") if lecam and per_device else P())
        if isinstance(config, Config):
            shard_codes = getattr(config.quantizer, "shard_codes", False)
            return NamedSharding(mesh, weight_spec(names[-1], leaf.shape, mesh, shard_codes))
        return NamedSharding(mesh, generator_spec(names[-1], leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(of, abstract)


def with_shardings(shapes: Any, mesh: Mesh, config: AnyConfig) -> Any:
    """The shapes of a training state as ShapeDtypeStructs that say where each leaf lives."""
    shardings = state_shardings(shapes, mesh, config)
    return jax.tree.map(lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), shapes, shardings)


def shardings_of(abstract: Any) -> Any:
    """Return the shardings of a pytree of ShapeDtypeStructs."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)


def size_of(weights: Mapping[str, Any]) -> int:
    """Count the numbers in a dictionary of arrays or of their shapes."""
    return sum(int(np.prod(w.shape)) for w in weights.values())
