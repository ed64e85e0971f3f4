"""The mesh and the partition rules: the only place that says which array lives where."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from voken_common.schema import Config, MeshConfig

AXES = ("data", "fsdp", "model")
BATCH = P(("data", "fsdp"))
"""The leading axis of everything that has a batch."""


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
    """How many parts the batch is split into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_batch(config: Config, mesh: Mesh) -> None:
    """Raise ValueError unless every device gets the same number of images of every micro-batch."""
    shards, accumulate = batch_shards(mesh), config.optimizer.accumulate
    for key, size, parts in (
        ("training.batch_size", config.training.batch_size, shards * accumulate),
        ("validation.batch_size", config.validation.batch_size, shards),
    ):
        if size % parts:
            raise ValueError(
                f"{key} {size} is not divisible by {parts} (devices along data and fsdp: {shards}"
                + (f", optimizer.accumulate: {accumulate}" if parts != shards else "")
                + f"); the nearest that is: {max(parts, round(size / parts) * parts)}"
            )


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Images split along their first axis."""
    return NamedSharding(mesh, BATCH)


def weight_spec(name: str, shape: tuple[int, ...], mesh: Mesh, shard_codes: bool) -> P:
    """Where one weight (or its moments or average) lives.

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


def state_shardings(abstract: Any, mesh: Mesh, config: Config) -> Any:
    """A NamedSharding for every leaf of a training state, by the weight's name at the end of its path."""
    shard_codes = getattr(config.quantizer, "shard_codes", False)

    def of(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        spec = weight_spec(str(names[-1]), leaf.shape, mesh, shard_codes) if names else P()
        if any(getattr(entry, "name", None) == "lecam" for entry in path) and config.statistics_scope == "per_device":
            spec = P("data")
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(of, abstract)
