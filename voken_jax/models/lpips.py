"""LPIPS v0.1: distance between VGG16 features, for training (Zhang et al., 2018). Never trained, no dropout.

Parameter names are those of the published checkpoints (`net.slice1.0.weight`, `lin0.model.1.weight`).
Shape legend: B batch, H/W pixels, S pixels of an image (H W) or a clip (T H W), C channels.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from voken_jax.models.layers import Policy, at_least_float32, conv

SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
SLICES = (
    ((0, 64), (2, 64)),
    ((5, 128), (7, 128)),
    ((10, 256), (12, 256), (14, 256)),
    ((17, 512), (19, 512), (21, 512)),
    ((24, 512), (26, 512), (28, 512)),
)
"""VGG16's convolutions by slice: (index in the original sequence, width). Every slice ends in its last ReLU."""


class ScalingLayer(nnx.Module):
    """[-1, 1] to the statistics VGG was trained with."""

    def __init__(self, *, policy: Policy):
        self.shift = nnx.BatchStat(jnp.asarray(SHIFT, policy.param_dtype).reshape(1, 3, 1, 1))
        self.scale = nnx.BatchStat(jnp.asarray(SCALE, policy.param_dtype).reshape(1, 3, 1, 1))

    def __call__(self, x: Float[Array, "B H W 3"]) -> Float[Array, "B H W 3"]:
        """(x - shift) / scale."""
        return (x - self.shift[...].reshape(3)) / self.scale[...].reshape(3)


class VGG(nnx.Module):
    """VGG16 up to relu5_3, returning the last ReLU of each slice."""

    def __init__(self, *, policy: Policy, rngs: nnx.Rngs):
        width = 3
        for number, layers in enumerate(SLICES, start=1):
            built: nnx.Dict = nnx.Dict()
            for index, out in layers:
                built[str(index)] = conv(width, out, 3, policy=policy, rngs=rngs)
                width = out
            setattr(self, f"slice{number}", built)

    def __call__(self, x: Float[Array, "B H W 3"]) -> list[Float[Array, "B h w C"]]:
        """relu1_2, relu2_2, relu3_3, relu4_3, relu5_3."""
        features = []
        for number, layers in enumerate(SLICES, start=1):
            built = getattr(self, f"slice{number}")
            if number > 1:
                x = nnx.max_pool(x, (2, 2), strides=(2, 2))
            for index, _ in layers:
                x = jax.nn.relu(built[str(index)](x))
            features.append(x)
        return features


class Head(nnx.Module):
    """1x1 convolution to one channel without bias; slot 1 of its sequence (slot 0 was dropout).

    Part of the loss, so in float32 at least.
    """

    def __init__(self, channels: int, *, policy: Policy, rngs: nnx.Rngs):
        self.model = nnx.Dict({"1": conv(channels, 1, 1, bias=False, policy=policy, rngs=rngs)})

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w 1"]:
        """Weighted sum over channels."""
        return self.model["1"](x)


class LPIPS(nnx.Module):
    """Perceptual distance of two images, or of two clips frame by frame."""

    def __init__(self, *, policy: Policy, rngs: nnx.Rngs):
        self.scaling_layer = ScalingLayer(policy=policy)
        self.net = VGG(policy=policy, rngs=rngs)
        wide = dataclasses.replace(policy, compute_dtype=jnp.promote_types(policy.compute_dtype, jnp.float32))
        for i, layers in enumerate(SLICES):
            setattr(self, f"lin{i}", Head(layers[-1][1], policy=wide, rngs=rngs))

    def __call__(self, x: Float[Array, "B *S 3"], y: Float[Array, "B *S 3"]) -> Float[Array, " B"]:
        """x, y in [-1, 1]; one distance per image, or the mean over a clip's frames, in float32 at least."""
        if x.ndim == 5:
            frames = self(x.reshape(-1, *x.shape[2:]), y.reshape(-1, *y.shape[2:]))
            return frames.reshape(x.shape[:2]).mean(axis=1)
        features = (self.net(self.scaling_layer(image)) for image in (x, y))
        total = jnp.zeros((), jnp.float32)
        for i, (a, b) in enumerate(zip(*features, strict=True)):
            difference = jnp.square(_unit(a) - _unit(b))
            total = total + getattr(self, f"lin{i}")(difference).mean(axis=(1, 2, 3))
        return total


def _unit(features: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
    """Divide by (l2 norm over channels + 1e-10); the gradient at an all-zero feature is zero, not NaN."""
    features = at_least_float32(features)
    squares = jnp.square(features).sum(axis=-1, keepdims=True)
    norm = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)
    return features / (norm + 1e-10)
