"""Modules as pure functions over flat dictionaries {dotted name: array}.

Flax NNX modules are split once into a graph definition and their arrays, and merged again inside the traced program.
Parameters (`nnx.Param`) and everything else (running statistics, constants: `nnx.BatchStat`) live in separate
dictionaries, because only the first are trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, PRNGKeyArray

Weights = dict[str, Array]

_GENERATOR = "rbg"
"""Random bits of initial values: one operation of the compiler per weight where threefry is a loop, so that a program
that initialises compiles three times faster. The same on any number of devices, but not on another kind of device."""


class KeySequence:
    """Numbered keys, handed out as `nnx.Rngs` hands out its `params` stream; None while only shapes are wanted.

    `nnx.Rngs` counts in a traced array whose every update searches the whole program so far, which makes tracing a
    network's construction quadratic in its size: five seconds for a published tokenizer, against one here.
    """

    def __init__(self, keys: PRNGKeyArray | None = None):
        self._keys, self.count = keys, 0

    def params(self) -> PRNGKeyArray:
        """The next key."""
        self.count += 1
        return jax.random.key(0, impl=_GENERATOR) if self._keys is None else self._keys[self.count - 1]


class Network:
    """A module builder seen as functions of weights.

    Attributes:
        parameters: name -> ShapeDtypeStruct of everything that is trained.
        buffers: name -> ShapeDtypeStruct of everything else.
    """

    def __init__(self, build: Callable[[Any], nnx.Module]):
        self._build = build
        counter = KeySequence()
        abstract = nnx.eval_shape(lambda: build(counter))
        self._draws = counter.count
        self._graphdef, state = nnx.split(abstract)
        self._variables = {".".join(map(str, path)): (path, v) for path, v in nnx.to_flat_state(state)}
        shapes = {name: jax.ShapeDtypeStruct(v.shape, v.dtype) for name, (_, v) in self._variables.items()}
        self.parameters = {n: s for n, s in shapes.items() if isinstance(self._variables[n][1], nnx.Param)}
        self.buffers = {n: s for n, s in shapes.items() if n not in self.parameters}

    def init(self, key: PRNGKeyArray) -> tuple[Weights, Weights]:
        """Fresh (parameters, buffers); traceable, so that large models can be born sharded."""
        seed = jax.random.bits(key, dtype=jnp.uint32)
        keys = jax.random.split(jax.random.key(seed, impl=_GENERATOR), max(self._draws, 1))
        weights = flatten(self._build(KeySequence(keys)))
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
