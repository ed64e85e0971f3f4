"""Decoded images in JAX: an array that also becomes PIL images and files."""

from __future__ import annotations

import operator
from typing import Any

import jax
import numpy as np
from jax import Array

from voken_common.api.pictures import Pictures


@jax.tree_util.register_pytree_node_class
class Images(Pictures):
    """Images in [-1, 1], (H, W, 3) or (B, H, W, 3), channels last.

    Acts as the JAX array it holds (attributes, indices, arithmetic, `jnp` and NumPy functions), which is `array`.
    """

    def __init__(self, array: Array):
        self.array = array

    def channels_last(self) -> np.ndarray:
        """The images as a NumPy array."""
        return np.asarray(self.array)

    def tree_flatten(self) -> tuple[tuple[Array], None]:
        """The array, for JAX's transformations."""
        return (self.array,), None

    @classmethod
    def tree_unflatten(cls, _: None, children: tuple[Array]) -> Images:
        """Images around an array that a transformation made."""
        return cls(*children)

    def __jax_array__(self) -> Array:
        return self.array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.array, dtype=dtype, copy=copy)

    def __getattr__(self, name: str) -> Any:
        if name == "array" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.array, name)

    def __getitem__(self, index: Any) -> Array:
        return self.array[index]

    def __len__(self) -> int:
        return len(self.array)

    def __repr__(self) -> str:
        return f"Images({self.array!r})"

    __hash__ = None  # type: ignore[assignment]


def _unwrapped(value: Any) -> Any:
    return value.array if isinstance(value, Images) else value


def _add_operator(name: str) -> None:
    apply = getattr(operator, name)

    def forward(self: Images, *others: Any) -> Any:
        return apply(self.array, *map(_unwrapped, others))

    def backward(self: Images, other: Any) -> Any:
        return apply(other, self.array)

    setattr(Images, f"__{name}__", forward)
    if name in ("add", "sub", "mul", "truediv", "pow"):
        setattr(Images, f"__r{name}__", backward)


for _name in ("add", "sub", "mul", "truediv", "pow", "neg", "abs", "eq", "ne", "lt", "le", "gt", "ge"):
    _add_operator(_name)
