"""Weights of equal layers as one array: `blocks.0.w`, `blocks.1.w`, ... become `blocks.*.w` with a leading axis.

A training step holds them so, and its whole program, the optimizer included, is as long for thirty layers as for two.
On disk, and wherever weights have names, every layer stays by itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from voken_jax.models.functional import Network, Weights

_LAYER = re.compile(r"(.*blocks)\.(\d+)\.(.+)")
_STACKED = re.compile(r"(.*blocks)\.\*\.(.+)")


def stack_layers(weights: Mapping[str, Array]) -> Weights:
    """Join the layers of every list of blocks; all else stays. Traceable."""
    result: dict[str, Any] = {}
    for name, array in weights.items():
        layer = _LAYER.fullmatch(name)
        if layer is None:
            result[name] = array
        else:
            result.setdefault(_stacked_name(name), {})[int(layer[2])] = array
    joined = {n: jnp.stack([a[i] for i in range(len(a))]) for n, a in result.items() if isinstance(a, dict)}
    return {**result, **joined}


def unstack_layers(weights: Mapping[str, Array]) -> Weights:
    """Inverse of `stack_layers`."""
    result: Weights = {}
    for name, array in weights.items():
        stacked = _STACKED.fullmatch(name)
        if stacked is None:
            result[name] = array
        else:
            result |= {f"{stacked[1]}.{number}.{stacked[2]}": array[number] for number in range(array.shape[0])}
    return result


def is_stacked(name: str) -> bool:
    """True if the array of this name holds several layers."""
    return _STACKED.fullmatch(name) is not None


def in_state(change: Callable[[Mapping[str, Array]], Weights], state: Any) -> Any:
    """Apply one of the two above to every dictionary of weights in a training state: parameters, moments, averages."""

    def is_weights(node: Any) -> bool:
        return isinstance(node, dict)

    return jax.tree.map(lambda node: change(node) if is_weights(node) else node, state, is_leaf=is_weights)


def bind_stacked(network: Network, weights: Mapping[str, Array]) -> Any:
    """The generator whose blocks all hold the joined weights, which it runs in a loop instead of one by one."""
    model = network.bind({name: weights[_stacked_name(name)] for name in network.parameters})
    model.stacked = True
    return model


def _stacked_name(name: str) -> str:
    layer = _LAYER.fullmatch(name)
    return name if layer is None else f"{layer[1]}.*.{layer[3]}"
