"""LPIPS v0.1: distance between features of VGG16 (training, evaluation) or AlexNet (evaluation); Zhang et al., 2018.

Never trained, no dropout.

Parameter names are those of the published checkpoints (`net.slice1.0.weight`, `lin0.model.1.weight`).
Shape legend: B batch, H/W pixels, S pixels of an image (H W) or a clip (T H W), C channels.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from voken_common.checkpoints.lpips_weights import POOL, POOLED, SCALE, SHIFT, Net, slices
from voken_jax.models.layers import Policy, at_least_float32, conv


class ScalingLayer(nnx.Module):
    """[-1, 1] to the statistics the networks were trained with."""

    def __init__(self, *, policy: Policy):
        self.shift = nnx.BatchStat(jnp.asarray(SHIFT, policy.param_dtype).reshape(1, 3, 1, 1))
        self.scale = nnx.BatchStat(jnp.asarray(SCALE, policy.param_dtype).reshape(1, 3, 1, 1))

    def __call__(self, x: Float[Array, "B H W 3"]) -> Float[Array, "B H W 3"]:
        """(x - shift) / scale."""
        return (x - self.shift[...].reshape(3)) / self.scale[...].reshape(3)


class Slices(nnx.Module):
    """VGG16 up to relu5_3, or AlexNet up to relu5, returning the last ReLU of each of five slices."""

    def __init__(self, net: Net, *, policy: Policy, rngs: nnx.Rngs):
        self.backbone = net
        for number, layers in slices(net).items():
            built: nnx.Dict = nnx.Dict()
            for index, inputs, outputs, side, stride in layers:
                pad = 2 if side == 11 else side // 2
                built[str(index)] = conv(
                    inputs, outputs, side, stride=stride, padding=[(pad, pad)] * 2, policy=policy, rngs=rngs
                )
            setattr(self, f"slice{number}", built)

    def __call__(self, x: Float[Array, "B H W 3"]) -> list[Float[Array, "B h w C"]]:
        """Features of every slice; of VGG16 relu1_2, relu2_2, relu3_3, relu4_3, relu5_3."""
        features, window = [], POOL[self.backbone]
        for number, layers in slices(self.backbone).items():
            built = getattr(self, f"slice{number}")
            if number in POOLED[self.backbone]:
                x = nnx.max_pool(x, (window, window), strides=(2, 2))
            for index, *_ in layers:
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
    """Perceptual distance of two images, or of two clips frame by frame, by VGG16 or by AlexNet."""

    def __init__(self, net: Net = "vgg", *, policy: Policy, rngs: nnx.Rngs):
        self.scaling_layer = ScalingLayer(policy=policy)
        self.net = Slices(net, policy=policy, rngs=rngs)
        wide = dataclasses.replace(policy, compute_dtype=jnp.promote_types(policy.compute_dtype, jnp.float32))
        for number, layers in slices(net).items():
            setattr(self, f"lin{number - 1}", Head(layers[-1][2], policy=wide, rngs=rngs))

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
