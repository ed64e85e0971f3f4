"""I3D: logits of Kinetics' classes as the features of Frechet video distances.

Shape legend: B batch, T frames, H/W pixels.
"""

from __future__ import annotations

import jax
from jaxtyping import Array, Float

from voken_common.checkpoints.feature_networks.i3d import HEAD_POOL, I3D, LEAST_FRAMES, SIDE
from voken_jax.models.metrics.feature_network import Weights, average_pool, resize_bilinear, run_stage


def i3d_logits(weights: Weights, clips: Float[Array, "B T H W 3"]) -> Float[Array, "B 400"]:
    """Logits of clips in [-1, 1], resized bilinearly to 224, averaged over time; products in full float32.

    Raises:
        ValueError: clips too short for the network.
    """
    batch, frames, *_ = clips.shape
    if frames < LEAST_FRAMES:
        raise ValueError(f"clips of {frames} frames; I3D needs at least {LEAST_FRAMES}")
    with jax.default_matmul_precision("float32"):
        x = clips
        if clips.shape[2:4] != (SIDE, SIDE):
            pictures = clips.reshape(batch * frames, *clips.shape[2:])
            x = resize_bilinear(pictures, SIDE, "half_pixel").reshape(batch, frames, SIDE, SIDE, 3)
        for stage, _ in I3D.stages:
            x = run_stage(I3D, weights, stage, x)
        x = average_pool(x, HEAD_POOL, (1, 1, 1), ((0, 0),) * 3)
        logits = x @ weights["logits.conv3d.kernel"][0, 0, 0] + weights["logits.conv3d.bias"]
        return logits.mean(axis=(1, 2, 3))
