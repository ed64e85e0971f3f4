"""LPIPS v0.1: distance between VGG16 features, for training (Zhang et al., 2018). Never trained, no dropout.

Parameter names are those of the published checkpoints (`net.slice1.0.weight`, `lin0.model.1.weight`).
Shape legend: B batch, H/W pixels, S pixels of an image (H W) or a clip (T H W), h/w positions, C channels.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from jaxtyping import Float
from torch import Tensor, nn

from voken_torch.device.kernels import at_least_float32
from voken_torch.models.layers import conv

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


class ScalingLayer(nn.Module):
    """[-1, 1] to the statistics VGG was trained with."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(SHIFT)[None, :, None, None])
        self.register_buffer("scale", torch.tensor(SCALE)[None, :, None, None])

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        """(x - shift) / scale."""
        return (x - self.shift) / self.scale


class VGG(nn.Module):
    """VGG16 up to relu5_3, returning the last ReLU of each slice."""

    def __init__(self) -> None:
        super().__init__()
        width = 3
        for number, layers in enumerate(SLICES, start=1):
            built: OrderedDict[str, nn.Module] = OrderedDict()
            if number > 1:
                built[str(layers[0][0] - 1)] = nn.MaxPool2d(2)
            for index, out in layers:
                built[str(index)] = conv(width, out, 3)
                built[str(index + 1)] = nn.ReLU()
                width = out
            setattr(self, f"slice{number}", nn.Sequential(built))

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B C h w"]]:
        """relu1_2, relu2_2, relu3_3, relu4_3, relu5_3."""
        features = []
        for number in range(1, len(SLICES) + 1):
            x = getattr(self, f"slice{number}")(x)
            features.append(x)
        return features


class Head(nn.Module):
    """1x1 convolution to one channel without bias, in slot 1 of its sequence; slot 0 was dropout.

    Part of the loss, so in float32 at least.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.model = nn.Sequential(nn.Identity(), conv(channels, 1, 1, bias=False))

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 1 h w"]:
        """Weighted sum over channels."""
        return (x * self.get_parameter("model.1.weight")[0]).sum(dim=1, keepdim=True)


class LPIPS(nn.Module):
    """Perceptual distance of two images, or of two clips frame by frame; its weights take no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.scaling_layer = ScalingLayer()
        self.net = VGG()
        for i, layers in enumerate(SLICES):
            setattr(self, f"lin{i}", Head(layers[-1][1]))
        self.requires_grad_(False)

    def forward(self, x: Float[Tensor, "B 3 *S"], y: Float[Tensor, "B 3 *S"]) -> Float[Tensor, " B"]:
        """x, y in [-1, 1]; one distance per image, or the mean over a clip's frames, in float32 at least."""
        if x.ndim == 5:
            frames = self(*(clip.transpose(1, 2).flatten(0, 1) for clip in (x, y)))
            return frames.unflatten(0, (x.shape[0], x.shape[2])).mean(dim=1)
        total = x.new_zeros(x.shape[0], dtype=torch.promote_types(x.dtype, torch.float32))
        for i, (a, b) in enumerate(zip(*(self.net(self.scaling_layer(image)) for image in (x, y)), strict=True)):
            difference = (_unit(a) - _unit(b)).square()
            total = total + getattr(self, f"lin{i}")(difference).mean(dim=(1, 2, 3))
        return total


def _unit(features: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
    """Divide by (l2 norm over channels + 1e-10); the gradient at an all-zero feature is zero, not not-a-number."""
    features = at_least_float32(features)
    squares = features.square().sum(dim=1, keepdim=True)
    positive = squares > 0
    norm = torch.where(positive, torch.where(positive, squares, 1.0).sqrt(), 0.0)
    return features / (norm + 1e-10)
