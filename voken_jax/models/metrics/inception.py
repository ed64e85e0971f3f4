"""FID's Inception: features for FID, spatial features for sFID, logits for the Inception Score.

Shape legend: B batch, H/W pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from voken_common.checkpoints.feature_networks.inception import INCEPTION, SIDE, SPATIAL_CHANNELS
from voken_common.checkpoints.feature_networks.layers import Conv
from voken_common.metrics.resize import Resize
from voken_jax.models.metrics.feature_network import Weights, resize_bilinear, run_conv, run_stage


class InceptionFeatures(NamedTuple):
    """Outputs of the network that metrics use, for one image.

    Attributes:
        pool3: (B, 2048), the mean over positions of the last feature map.
        spatial: (B, 2023), seven channels of Mixed_6d's 1x1 branch in the order row, column, channel.
        logits: (B, 1008), pool3 times the class weights, **without** the bias, as the ADM evaluator does.
    """

    pool3: Float[Array, "B 2048"]
    spatial: Float[Array, "B 2023"]
    logits: Float[Array, "B 1008"]


def inception_input(images: Num[Array, "B H W 3"], resize: Resize) -> Float[Array, "B 299 299 3"]:
    """Images, uint8 or in [-1, 1], as the network sees them.

    `half_pixel` keeps the range [-1, 1]. `tensorflow1` resizes in 0..255 and maps to (x - 128) / 128, as TensorFlow's
    graph does.
    """
    raw = images.dtype == jnp.uint8
    if resize == "half_pixel":
        return resize_bilinear(images.astype(jnp.float32) / 127.5 - 1 if raw else images, SIDE, resize)
    scaled = images.astype(jnp.float32) if raw else (images + 1) * 127.5
    return (resize_bilinear(scaled, SIDE, resize) - 128) / 128


def inception_stages(weights: Weights, x: Float[Array, "B 299 299 3"]) -> dict[str, Array]:
    """The output of every stage by name, for what `inception_input` gives."""
    outputs = {}
    for stage, _ in INCEPTION.stages:
        outputs[stage] = x = run_stage(INCEPTION, weights, stage, x)
    return outputs


def inception_features(
    weights: Weights, images: Num[Array, "B H W 3"], resize: Resize = "half_pixel"
) -> InceptionFeatures:
    """Features of images, uint8 or in [-1, 1], of any size; matrix products in full float32."""
    with jax.default_matmul_precision("float32"):
        x = inception_input(images, resize).astype(weights["fc.kernel"].dtype)
        stages = inception_stages(weights, x)
        pool3 = stages["Mixed_7"].mean(axis=(1, 2))
        branch = run_conv(INCEPTION, weights, _SPATIAL, stages["Mixed_6abc"])[..., :SPATIAL_CHANNELS]
        spatial = branch.reshape(branch.shape[0], -1)
        return InceptionFeatures(pool3, spatial, pool3 @ weights["fc.kernel"])


_SPATIAL: Conv = next(conv for conv in INCEPTION.convolutions() if conv.name == "Mixed_6d.branch1x1")
