"""A step of Orbax as NumPy arrays under torch names, read and written without touching a device.

Items are written one after the other and straight from the arrays given: Orbax would otherwise copy all of them first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp

from voken_common.checkpoints import weight_names as names
from voken_common.checkpoints.conversion.contents import Contents, Manifest, Moments, Training
from voken_common.checkpoints.steps import ITEMS, Weights
from voken_common.config.loading import AnyConfig
from voken_common.config.schema.generator import GeneratorConfig
from voken_common.errors import CheckpointError
from voken_jax.checkpoints.checksums import seal
from voken_jax.checkpoints.orbax import DATA_FILE, read_data, read_meta, readable
from voken_jax.optimization.optim import DecayState, build_generator_optimizer, build_optimizer

REST = "rest"
_PLAYERS = ("generator", "discriminator")


def read_step(folder: Path, weights: Weights | None = None, training: bool = True) -> Contents:
    """Read a step.

    Args:
        folder: as `voken_jax.checkpoints.orbax.find_step` gives it.
        weights: read only this set; None: everything.
        training: read the training state too, unless a set is asked for.

    Raises:
        CheckpointError: items are missing or cannot be read.
    """
    meta = read_meta(folder)
    contents = Contents(str(folder), "orbax", meta.config, meta.step, meta.metrics, kind=meta.config.kind)
    for kind, item in ITEMS.items():
        if (folder / item).is_dir():
            if weights in (None, kind):
                contents.weights[kind] = names.to_torch(_read_item(folder / item))
            else:
                contents.dropped.append(f"{item}: not asked for")
    if (folder / REST).is_dir():
        if weights is None and training:
            with readable(folder / REST):
                _read_rest(contents, _read_item(folder / REST))
            contents.data, contents.progress = read_data(folder), meta.progress
        else:
            contents.dropped.append("training state and position in the data: the target holds weights only")
    if not contents.weights:
        found = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_dir()))
        wanted = ITEMS[weights] if weights else " or ".join(ITEMS.values())
        raise CheckpointError(f"{folder} holds no {wanted}; found: {found}")
    return contents


def write_step(folder: Path, contents: Contents, manifest: Manifest) -> None:
    """Write a step: a training state where the contents have one, else weights for inference.

    Args:
        folder: must not exist.
        contents: checked against `manifest`.
        manifest: of its configuration.
    """
    items: dict[str, Any] = {"meta": ocp.args.JsonSave(contents.meta.to_dict())}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(folder.absolute(), args=ocp.args.Composite(**items))
    for kind, arrays in contents.weights.items():
        _write_item(folder / ITEMS[kind], names.to_jax(arrays))
    if contents.training is not None:
        _write_item(folder / REST, _rest(contents, contents.training, manifest))
    if contents.data is not None:
        (folder / DATA_FILE).parent.mkdir()
        (folder / DATA_FILE).write_text(json.dumps(contents.data, indent=4))
    seal(folder)


def _read_item(folder: Path) -> dict[str, Any]:
    """All arrays of an item as they are, in NumPy: JAX would make 32 bits of 64."""
    handler = ocp.PyTreeCheckpointHandler()
    try:
        with readable(folder):
            metadata = handler.metadata(folder.absolute())
            kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata.tree)
            return handler.restore(folder.absolute(), args=ocp.args.PyTreeRestore(restore_args=kinds))
    finally:
        handler.close()


def _write_item(folder: Path, tree: Any) -> None:
    handlers = ocp.type_handlers
    registry = handlers.create_type_handler_registry(
        (np.ndarray, handlers.NumpyHandler(deepcopy_host_arrays=False)), (jax.Array, handlers.ArrayHandler())
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(type_handler_registry=registry)) as checkpointer:
        checkpointer.save(folder.absolute(), ocp.args.PyTreeSave(tree))


def _read_rest(contents: Contents, rest: dict[str, Any]) -> None:
    if int(rest["failure"]):
        raise CheckpointError(f"{contents.origin} was saved after a failed update; use an earlier step")
    if rest["rng"].shape != (2,):
        raise CheckpointError(
            f"{contents.origin} has random-number keys of shape {rest['rng'].shape}, expected (2,): it was trained "
            "with another generator than JAX's default (threefry), and PyTorch here has none such. Convert the "
            "weights alone, with --weights ema"
        )
    rng = rest["rng"].astype(np.int64)
    if contents.kind == "generator":
        contents.training = Training(rng, _read_moments(rest["optimizer"], contents.origin))
        return
    contents.discriminator = names.to_torch(rest["discriminator"] | rest["buffers"])
    contents.discriminator_ema = names.to_torch(rest["discriminator_ema"])
    own, other = (_read_moments(rest[f"{player}_optimizer"], contents.origin) for player in _PLAYERS)
    contents.training = Training(rng, own, other, dict(rest["lecam"]))


def _rest(contents: Contents, training: Training, manifest: Manifest) -> dict[str, Any]:
    """The item `rest`: fields of the state by name, without weights of the generator."""
    step, failure = np.array(contents.step, np.int32), np.array(0, np.int32)
    rng = training.rng.astype(np.uint32)
    own = _optax_state(contents.meta.config, training.generator_optimizer)
    if training.discriminator_optimizer is None:
        return {"step": step, "rng": rng, "optimizer": own, "failure": failure}
    config, discriminator = contents.meta.tokenizer, contents.discriminator or {}
    lecam = training.lecam
    if config.statistics_scope == "global":
        lecam = {side: values.mean(keepdims=True) for side, values in lecam.items()}
    buffers = {name: _narrow(discriminator[name]) for name in manifest.buffers}
    return {
        "step": step,
        "rng": rng,
        "discriminator": names.to_jax({name: discriminator[name] for name in manifest.discriminator}),
        "buffers": names.to_jax(buffers),
        "generator_optimizer": own,
        "discriminator_optimizer": _optax_state(config, training.discriminator_optimizer),
        "discriminator_ema": names.to_jax(contents.discriminator_ema or {}),
        "lecam": lecam,
        "failure": failure,
    }


def _optax_state(config: AnyConfig, moments: Moments) -> optax.OptState:
    """The state of the chain that the configuration builds, with these moments in it and its counters where they are.

    Raises:
        AssertionError: the chain has a part with a state of its own that is unknown here.
    """
    mu, nu, count = names.to_jax(moments.mu), names.to_jax(moments.nu), np.array(moments.count, np.int32)
    shapes = {name: jax.ShapeDtypeStruct(array.shape, np.float32) for name, array in mu.items()}
    constant: Any = lambda *_: 1.0  # noqa: E731 (the schedule has no part in the shape of the state)
    if isinstance(config, GeneratorConfig):
        optimizer = build_generator_optimizer(config.optimizer, constant, total_steps=1)
    else:
        optimizer = build_optimizer(config.optimizer, constant)
    abstract = jax.eval_shape(optimizer.init, shapes)
    kinds = (optax.ScaleByAdamState, optax.ScaleByScheduleState, DecayState)

    def fill(node: Any) -> Any:
        if isinstance(node, optax.ScaleByAdamState):
            return optax.ScaleByAdamState(count, mu, nu)
        assert isinstance(node, kinds), f"unknown part of an optimizer: {node!r:.80}"
        counted: Any = type(node)
        return counted(count)

    return jax.tree.map(fill, abstract, is_leaf=lambda node: isinstance(node, kinds))


def _read_moments(tree: Any, origin: str) -> Moments:
    """The one Adam inside a chain of any length."""
    if isinstance(tree, Mapping) and {"count", "mu", "nu"} <= set(tree):
        return Moments(int(tree["count"]), names.to_torch(tree["mu"]), names.to_torch(tree["nu"]))
    below = list(tree.values()) if isinstance(tree, Mapping) else tree if isinstance(tree, list | tuple) else []
    found = [node for node in below if _has_moments(node)]
    if len(found) != 1:
        raise CheckpointError(f"{origin}: the optimizer's state holds {len(found)} Adam states, expected 1")
    return _read_moments(found[0], origin)


def _has_moments(tree: Any) -> bool:
    if not isinstance(tree, Mapping | list | tuple):
        return False
    below = tree.values() if isinstance(tree, Mapping) else tree
    return (isinstance(tree, Mapping) and {"mu", "nu"} <= set(tree)) or any(map(_has_moments, below))


def _narrow(array: np.ndarray) -> np.ndarray:
    """JAX counts batches in 32 bits."""
    return array.astype(np.int32) if np.issubdtype(array.dtype, np.integer) else array
