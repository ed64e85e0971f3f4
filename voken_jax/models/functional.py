"""Modules as pure functions over flat dictionaries {dotted name: array}.

Flax NNX modules are split once into a graph definition and their arrays, and merged again inside the traced program.
Parameters (`nnx.Param`) and everything else (running statistics, constants: `nnx.BatchStat`) live in separate
dictionaries, because only the first are trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, PRNGKeyArray

Weights = dict[str, Array]


class KeySequence:
    """Numbered keys below one key, handed out as `nnx.Rngs` hands out its `params` stream.

    `nnx.Rngs` counts in a traced array whose every update searches the whole program so far, which makes tracing a
    network's construction quadratic in its size: five seconds for a published tokenizer, against one here.
    """

    def __init__(self, key: PRNGKeyArray):
        self._key, self._count = key, 0

    def params(self) -> PRNGKeyArray:
        """The next key."""
        self._count += 1
        return jax.random.fold_in(self._key, self._count - 1)


class Network:
    """A module builder seen as functions of weights.

    Attributes:
        parameters: name -> ShapeDtypeStruct of everything that is trained.
        buffers: name -> ShapeDtypeStruct of everything else.
    """

    def __init__(self, build: Callable[[Any], nnx.Module]):
        self._build = build
        abstract = nnx.eval_shape(lambda: build(KeySequence(jax.random.key(0))))
        self._graphdef, state = nnx.split(abstract)
        self._variables = {".".join(map(str, path)): (path, v) for path, v in nnx.to_flat_state(state)}
        shapes = {name: jax.ShapeDtypeStruct(v.shape, v.dtype) for name, (_, v) in self._variables.items()}
        self.parameters = {n: s for n, s in shapes.items() if isinstance(self._variables[n][1], nnx.Param)}
        self.buffers = {n: s for n, s in shapes.items() if n not in self.parameters}

    def init(self, key: PRNGKeyArray) -> tuple[Weights, Weights]:
        """Fresh (parameters, buffers); traceable, so that large models can be born sharded."""
        weights = flatten(self._build(KeySequence(key)))
        return {n: weights[n] for n in self.parameters}, {n: weights[n] for n in self.buffers}

    def bind(self, parameters: Mapping[str, Array], buffers: Mapping[str, Array] | None = None) -> Any:
        """The module holding these arrays."""
        values = {**parameters, **(buffers or {})}
        flat = [(path, variable.replace(values[name])) for name, (path, variable) in self._variables.items()]
        return nnx.merge(self._graphdef, nnx.from_flat_state(flat))


def flatten(module: nnx.Module) -> Weights:
    """All arrays of a module by dotted name."""
    state = nnx.to_flat_state(nnx.state(module))
    return {".".join(map(str, path)): variable.get_value() for path, variable in state}


def buffers_of(module: nnx.Module) -> Weights:
    """The arrays of a module that are not parameters, by dotted name; as they stand after a call in training mode."""
    state = nnx.to_flat_state(nnx.state(module, nnx.BatchStat))
    return {".".join(map(str, path)): variable.get_value() for path, variable in state}
