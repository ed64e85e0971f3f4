"""The layout of voken's own PyTorch checkpoints: `<step>.pt`, a dictionary of plain values and tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from voken_common.checkpoints import weight_names as names
from voken_common.checkpoints.conversion.contents import Arrays, Contents, Manifest, Moments, Training
from voken_common.checkpoints.steps import ITEMS, LAYOUT, Meta
from voken_common.errors import CheckpointError

FORMAT = "voken"
_ENTRIES = ("format", "layout", "step", "metrics", "config", "progress", *ITEMS.values(), "rest", "data")
_REST = (
    "rng",
    "discriminator",
    "buffers",
    "generator_optimizer",
    "discriminator_optimizer",
    "discriminator_ema",
    "lecam",
)
_GENERATOR_REST = ("rng", "optimizer")
_MOMENTS = ("count", "mu", "nu")


def is_own(root: Any) -> bool:
    """True if the contents of a torch file are a checkpoint of voken."""
    return isinstance(root, Mapping) and root.get("format") == FORMAT


def to_contents(root: Mapping[str, Any], origin: str) -> Contents:
    """Read a checkpoint that was loaded as arrays.

    Raises:
        CheckpointError: another layout, or entries that are missing or not what they should be.
        ConfigError: a configuration that is not one of this version.
    """
    meta = Meta.from_dict(root, origin)
    unknown = sorted(set(root) - set(_ENTRIES))
    if unknown:
        raise CheckpointError(f"{origin} has entries {unknown}; layout {LAYOUT} has {', '.join(_ENTRIES)}")
    contents = Contents(origin, "torch", meta.config, meta.step, meta.metrics, kind=meta.config.kind)
    for kind, entry in ITEMS.items():
        if root.get(entry) is not None:
            contents.weights[kind] = _arrays(root[entry], f"{origin}, {entry}")
    if not contents.weights:
        raise CheckpointError(f"{origin} holds no weights: neither {' nor '.join(ITEMS.values())}")
    if root.get("rest") is not None:
        _read_rest(contents, root["rest"], origin)
    contents.data, contents.progress = root.get("data"), meta.progress
    return contents


def from_contents(contents: Contents, manifest: Manifest) -> dict[str, Any]:
    """The checkpoint with these contents; weights are arrays, for the caller to turn into tensors."""
    meta = contents.meta
    root: dict[str, Any] = {"format": FORMAT, **meta.to_dict()}
    for kind, arrays in contents.weights.items():
        root[ITEMS[kind]] = dict(arrays)
    training = contents.training
    if training is not None and training.discriminator_optimizer is None:
        root["rest"] = {
            "rng": training.rng.astype(np.int64),
            "optimizer": _write_moments(training.generator_optimizer),
        }
    elif training is not None and training.discriminator_optimizer is not None:
        whole, averages = contents.discriminator or {}, contents.discriminator_ema or {}
        root["rest"] = {
            "rng": training.rng.astype(np.int64),
            "discriminator": {name: whole[name] for name in manifest.discriminator},
            "buffers": {name: _wide(whole[name]) for name in manifest.buffers},
            "generator_optimizer": _write_moments(training.generator_optimizer),
            "discriminator_optimizer": _write_moments(training.discriminator_optimizer),
            "discriminator_ema": averages,
            "lecam": training.lecam,
        }
    if contents.data is not None:
        root["data"] = contents.data
    return root


def _read_rest(contents: Contents, rest: Any, origin: str) -> None:
    rest = _entry(rest, _GENERATOR_REST if contents.kind == "generator" else _REST, f"{origin}, rest")
    rng = rest["rng"]
    if not isinstance(rng, np.ndarray) or rng.shape != (2,):
        raise CheckpointError(f"{origin}, rest.rng is {np.shape(rng)}; expected two words")
    if contents.kind == "generator":
        contents.training = Training(rng, _read_moments(rest["optimizer"], f"{origin}, rest.optimizer"))
        return
    parameters, buffers = (_arrays(rest[group], f"{origin}, rest.{group}") for group in ("discriminator", "buffers"))
    contents.discriminator = {**parameters, **buffers}
    contents.discriminator_ema = _arrays(rest["discriminator_ema"], f"{origin}, rest.discriminator_ema")
    contents.training = Training(
        rng=rng,
        generator_optimizer=_read_moments(rest["generator_optimizer"], f"{origin}, rest.generator_optimizer"),
        discriminator_optimizer=_read_moments(
            rest["discriminator_optimizer"], f"{origin}, rest.discriminator_optimizer"
        ),
        lecam=_arrays(_entry(rest["lecam"], ("real", "fake"), f"{origin}, rest.lecam"), f"{origin}, rest.lecam"),
    )


def _read_moments(values: Any, what: str) -> Moments:
    values = _entry(values, _MOMENTS, what)
    return Moments(int(values["count"]), _arrays(values["mu"], f"{what}.mu"), _arrays(values["nu"], f"{what}.nu"))


def _write_moments(moments: Moments) -> dict[str, Any]:
    return {"count": np.array(moments.count, np.int64), "mu": moments.mu, "nu": moments.nu}


def _entry(values: Any, expected: tuple[str, ...], what: str) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        raise CheckpointError(f"{what} is {type(values).__name__}; expected entries {', '.join(expected)}")
    names.require_same_names(values, expected, what)
    return values


def _arrays(values: Any, what: str) -> Arrays:
    if not isinstance(values, Mapping):
        raise CheckpointError(f"{what} is {type(values).__name__}; expected tensors by name")
    wrong = {key: type(value).__name__ for key, value in values.items() if not isinstance(value, np.ndarray)}
    if wrong:
        raise CheckpointError(f"{what} holds {dict(list(wrong.items())[:4])}; expected tensors")
    return dict(values)


def _wide(array: np.ndarray) -> np.ndarray:
    """PyTorch counts batches in 64 bits."""
    return array.astype(np.int64) if np.issubdtype(array.dtype, np.integer) else array
