"""I3D: logits of Kinetics' classes as the features of Frechet video distances.

Shape legend: B batch, T frames, H/W pixels.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from voken_common.checkpoints.feature_networks.i3d import HEAD_POOL, I3D, LEAST_FRAMES, SIDE
from voken_torch.models.metrics.feature_network import FeatureExtractor, resize_bilinear


class VideoNetwork(FeatureExtractor):
    """I3D; its weights come from `load`."""

    def __init__(self) -> None:
        super().__init__(I3D)

    @torch.no_grad()
    def forward(self, clips: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B 400"]:
        """Logits of clips in [-1, 1], resized bilinearly to 224, averaged over time.

        Raises:
            ValueError: clips too short for the network.
        """
        batch, _, frames, height, width = clips.shape
        if frames < LEAST_FRAMES:
            raise ValueError(f"clips of {frames} frames; I3D needs at least {LEAST_FRAMES}")
        x = clips
        if (height, width) != (SIDE, SIDE):
            pictures = clips.movedim(2, 1).reshape(batch * frames, 3, height, width)
            pictures = resize_bilinear(pictures, SIDE, "half_pixel")
            x = pictures.reshape(batch, frames, 3, SIDE, SIDE).movedim(1, 2)
        for name, _ in I3D.stages:
            x = self.stage(name, x)
        weight = self.get_parameter("logits.conv3d.weight")[:, :, 0, 0, 0]
        # The mean over windows of stride 1 as a sum over places: some devices have no average pool in three dimensions.
        windows = x.unfold(2, HEAD_POOL[0], 1).unfold(3, HEAD_POOL[1], 1).unfold(4, HEAD_POOL[2], 1)
        pooled = windows.mean(dim=(-3, -2, -1))
        logits = torch.einsum("bcthw,oc->bothw", pooled, weight)
        return logits.mean(dim=(2, 3, 4)) + self.get_parameter("logits.conv3d.bias")
