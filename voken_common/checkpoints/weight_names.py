"""One name for one weight: torch state-dict keys <-> JAX paths, with the layout transforms, reversible.

A JAX path is the torch key with the leaf renamed by what the tensor is:

- `weight` of a norm (1-D)            -> `scale`, unchanged
- `weight` of a convolution (>= 3-D)  -> `kernel`, (out, in, *space) -> (*space, in, out)
- `weight` of a linear layer (2-D)    -> `kernel`, (out, in) -> (in, out)
- `weight` of an embedding (2-D)      -> `embedding`, unchanged
- anything else (`bias`, `running_mean`, constants of a few layers) keeps name and layout.

Both directions are total on the names that exist, so a mapping is complete or it is an error (`require_same_names`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from voken_common.errors import UserError

_EMBEDDING = re.compile(r"(^|\.)(embedding|\w*embeddings?|\w+_emb|embedding_table)\.weight$")
_CONSTANT = re.compile(r"(^|\.)(scaling_layer\.(shift|scale)|blocks\.\d+\.1\.kernel)$")
"""Buffers whose own leaf name collides with a renamed one: they are carried as they are."""

EMA_PREFIX = "model_ema."
DISCRIMINATOR_PREFIX = "loss.discriminator."
PERCEPTUAL_PREFIX = "loss.perceptual_loss."


class NameMismatch(UserError):
    """Weights whose names or shapes are not the ones expected; the message lists all of them."""


def to_jax_name(key: str, ndim: int) -> str:
    """JAX path of a torch key whose tensor has `ndim` dimensions."""
    head, dot, leaf = key.rpartition(".")
    if leaf != "weight" or _CONSTANT.search(key):
        return key
    if ndim == 1:
        return f"{head}{dot}scale"
    if ndim == 2 and _EMBEDDING.search(key):
        return f"{head}{dot}embedding"
    if ndim >= 2:
        return f"{head}{dot}kernel"
    raise NameMismatch(f"{key} is a scalar weight: expected a norm, convolution, linear layer or embedding")


def to_torch_name(path: str) -> str:
    """Torch key of a JAX path."""
    head, dot, leaf = path.rpartition(".")
    if leaf in ("kernel", "scale", "embedding") and not _CONSTANT.search(path):
        return f"{head}{dot}weight"
    return path


def to_jax_layout(path: str, array: np.ndarray) -> np.ndarray:
    """View of a torch tensor in the layout of the JAX path `path`."""
    if path.rpartition(".")[2] != "kernel" or _CONSTANT.search(path):
        return array
    return array.transpose(*range(2, array.ndim), 1, 0)


def to_torch_layout(path: str, array: np.ndarray) -> np.ndarray:
    """View of a JAX array at `path` in torch's layout."""
    if path.rpartition(".")[2] != "kernel" or _CONSTANT.search(path):
        return array
    return array.transpose(array.ndim - 1, array.ndim - 2, *range(array.ndim - 2))


def to_jax(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename and re-lay a torch state dict."""
    result = {}
    for key, array in state_dict.items():
        path = to_jax_name(key, array.ndim)
        result[path] = to_jax_layout(path, array)
    return result


def to_torch(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Inverse of `to_jax`."""
    return {to_torch_name(path): to_torch_layout(path, array) for path, array in weights.items()}


def ema_name(key: str) -> str:
    """Name of a parameter's average inside a published checkpoint: the dots are gone."""
    return EMA_PREFIX + key.replace(".", "")


def require_same_names(found: Iterable[str], expected: Iterable[str], what: str) -> None:
    """Raise NameMismatch listing missing and unexpected names, the nearest match beside each."""
    found_set, expected_set = set(found), set(expected)
    missing, unexpected = sorted(expected_set - found_set), sorted(found_set - expected_set)
    if not missing and not unexpected:
        return
    lines = [f"{what}: {len(missing)} name(s) missing, {len(unexpected)} unexpected"]
    lines += _listing("missing", missing, unexpected) + _listing("unexpected", unexpected, missing)
    raise NameMismatch("\n".join(lines))


def require_same_shapes(found: Mapping[str, Any], expected: Mapping[str, Any], what: str) -> None:
    """Raise NameMismatch unless names and shapes agree; values are anything with a `shape`."""
    require_same_names(found, expected, what)
    wrong = [name for name in expected if tuple(found[name].shape) != tuple(expected[name].shape)]
    if wrong:
        lines = [f"{what}: {len(wrong)} weight(s) of another shape"]
        lines += [f"  {n}: found {tuple(found[n].shape)}, expected {tuple(expected[n].shape)}" for n in wrong[:20]]
        raise NameMismatch("\n".join(lines))


def map_names(weights: Mapping[str, Any], rename: Callable[[str], str]) -> dict[str, Any]:
    """Rename the values; two values under one name are an error."""
    result: dict[str, Any] = {}
    for name, value in weights.items():
        if rename(name) in result:
            raise NameMismatch(f"two weights would be called {rename(name)}")
        result[rename(name)] = value
    return result


def _listing(label: str, names: list[str], others: list[str], limit: int = 20) -> list[str]:
    lines = []
    for name in names[:limit]:
        near = difflib.get_close_matches(name, others, n=1)
        lines.append(f"  {label}: {name}" + (f" (nearest: {near[0]})" if near else ""))
    if len(names) > limit:
        lines.append(f"  ... and {len(names) - limit} more {label}")
    return lines
