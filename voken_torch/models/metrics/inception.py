"""FID's Inception: features for FID, spatial features for sFID, logits for the Inception Score.

Shape legend: B batch, H/W pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Num
from torch import Tensor

from voken_common.checkpoints.feature_networks.inception import INCEPTION, SIDE, SPATIAL_CHANNELS
from voken_common.metrics.resize import Resize
from voken_torch.models.metrics.feature_network import FeatureExtractor, resize_bilinear


class InceptionFeatures(NamedTuple):
    """Outputs of the network that metrics use, for one image.

    Attributes:
        pool3: (B, 2048), the mean over positions of the last feature map.
        spatial: (B, 2023), seven channels of Mixed_6d's 1x1 branch in the order row, column, channel.
        logits: (B, 1008), pool3 times the class weights, **without** the bias, as the ADM evaluator does.
    """

    pool3: Float[Tensor, "B 2048"]
    spatial: Float[Tensor, "B 2023"]
    logits: Float[Tensor, "B 1008"]


def inception_input(images: Num[Tensor, "B 3 H W"], resize: Resize) -> Float[Tensor, "B 3 299 299"]:
    """Images, uint8 or in [-1, 1], as the network sees them.

    `half_pixel` keeps the range [-1, 1]. `tensorflow1` resizes in 0..255 and maps to (x - 128) / 128, as TensorFlow's
    graph does.
    """
    raw = images.dtype == torch.uint8
    if resize == "half_pixel":
        return resize_bilinear(images.float() / 127.5 - 1 if raw else images, SIDE, resize)
    scaled = images.float() if raw else (images + 1) * 127.5
    return (resize_bilinear(scaled, SIDE, resize) - 128) / 128


class Inception(FeatureExtractor):
    """The network; its weights come from `load`."""

    def __init__(self) -> None:
        super().__init__(INCEPTION)

    def stages(self, x: Float[Tensor, "B 3 299 299"]) -> dict[str, Tensor]:
        """The output of every stage by name, for what `inception_input` gives."""
        outputs = {}
        for name, _ in INCEPTION.stages:
            outputs[name] = x = self.stage(name, x)
        return outputs

    @torch.no_grad()
    def forward(self, images: Num[Tensor, "B 3 H W"], resize: Resize = "half_pixel") -> InceptionFeatures:
        """Features of images, uint8 or in [-1, 1], of any size."""
        weight = self.get_parameter("fc.weight")
        x, spatial = inception_input(images, resize).to(weight.dtype), None
        for name, _ in INCEPTION.stages:
            if name == "Mixed_6d":
                spatial = self.unit("Mixed_6d.branch1x1", x)[:, :SPATIAL_CHANNELS].movedim(1, -1).flatten(1)
            x = self.stage(name, x)
        assert spatial is not None
        pool3 = x.mean(dim=(2, 3))
        return InceptionFeatures(pool3, spatial, pool3 @ weight.T)
