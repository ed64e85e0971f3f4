"""A feature network as a function of its weights: convolutions with batch norm, pools, concatenated branches.

Shape legend: B batch, S spatial axes (two or three), C channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from voken_common.checkpoints import weight_names as names
from voken_common.checkpoints.feature_networks.layers import Branches, Conv, FeatureNetwork, Pool, Step, sides
from voken_common.metrics.resize import Resize, taps

Weights = dict[str, Array]


def place_weights(arrays: Mapping[str, np.ndarray], dtype: DTypeLike = jnp.float32) -> Weights:
    """Weights under JAX's names and in its layouts, from those of a published file."""
    return {name: jnp.asarray(np.asarray(array), dtype) for name, array in names.to_jax(dict(arrays)).items()}


def run_stage(
    network: FeatureNetwork, weights: Weights, stage: str, x: Float[Array, "B *S C"]
) -> Float[Array, "B *s c"]:
    """The output of one stage for the output of the stage before it."""
    for step in dict(network.stages)[stage]:
        x = _step(network, weights, step, x)
    return x


def run_conv(
    network: FeatureNetwork, weights: Weights, conv: Conv, x: Float[Array, "B *S C"]
) -> Float[Array, "B *s c"]:
    """One convolution with its norm and ReLU."""
    axes = "DHW"[-len(conv.kernel) :]
    padding = sides(conv.padding, conv.kernel, conv.stride, x.shape[1:-1])
    kernel = weights[f"{conv.name}.{network.conv_leaf}.kernel"]
    layout = (f"N{axes}C", f"{axes}IO", f"N{axes}C")
    y = lax.conv_general_dilated(x, kernel, conv.stride, padding, dimension_numbers=layout)
    norm = {leaf: weights[f"{conv.name}.bn.{leaf}"] for leaf in ("scale", "bias", "running_mean", "running_var")}
    factor = norm["scale"] * lax.rsqrt(norm["running_var"] + network.epsilon)
    return jax.nn.relu(y * factor + (norm["bias"] - norm["running_mean"] * factor))


def average_pool(
    x: Float[Array, "B *S C"], kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[tuple[int, int], ...]
) -> Float[Array, "B *s C"]:
    """Mean over the positions of each window that are not padding."""
    window = (1, *kernel, 1)
    strides, pads = (1, *stride, 1), ((0, 0), *padding, (0, 0))
    total = lax.reduce_window(x, jnp.zeros((), x.dtype), lax.add, window, strides, pads)
    if not any(map(any, padding)):
        return total / math.prod(kernel)
    ones = jnp.ones((1, *x.shape[1:-1], 1), x.dtype)
    return total / lax.reduce_window(ones, jnp.zeros((), x.dtype), lax.add, window, strides, pads)


def resize_bilinear(images: Float[Array, "B H W C"], side: int, resize: Resize) -> Float[Array, "B s s C"]:
    """To `side` x `side`, as `voken_common.metrics.resize` defines it."""
    for axis in (1, 2):
        low, high, weight = taps(images.shape[axis], side, resize)
        shape = [1] * images.ndim
        shape[axis] = side
        first, second = jnp.take(images, low, axis), jnp.take(images, high, axis)
        images = first + (second - first) * jnp.asarray(weight, images.dtype).reshape(shape)
    return images


def _step(network: FeatureNetwork, weights: Weights, step: Step, x: Array) -> Array:
    if isinstance(step, Conv):
        return run_conv(network, weights, step, x)
    if isinstance(step, Pool):
        return _pool(step, x)
    assert isinstance(step, Branches)
    outputs = []
    for part in step.parts:
        y = x
        for inner in part:
            y = _step(network, weights, inner, y)
        outputs.append(y)
    return jnp.concatenate(outputs, axis=-1)


def _pool(pool: Pool, x: Array) -> Array:
    padding = sides(pool.padding, pool.kernel, pool.stride, x.shape[1:-1])
    if pool.kind == "average":
        return average_pool(x, pool.kernel, pool.stride, padding)
    # What is pooled comes out of a ReLU, so that padding with zeros and with minus infinity are the same.
    pads = ((0, 0), *padding, (0, 0))
    return lax.reduce_window(x, jnp.array(-jnp.inf, x.dtype), lax.max, (1, *pool.kernel, 1), (1, *pool.stride, 1), pads)
