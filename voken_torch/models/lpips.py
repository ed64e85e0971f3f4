"""LPIPS v0.1: distance between features of VGG16 (training, evaluation) or AlexNet (evaluation); Zhang et al., 2018.

Never trained, no dropout.

Parameter names are those of the published checkpoints (`net.slice1.0.weight`, `lin0.model.1.weight`).
Shape legend: B batch, H/W pixels, S pixels of an image (H W) or a clip (T H W), h/w positions, C channels.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from jaxtyping import Float
from torch import Tensor, nn

from voken_common.checkpoints.lpips_weights import POOL, POOLED, SCALE, SHIFT, Net, slices
from voken_torch.device.kernels import at_least_float32
from voken_torch.models.layers import conv


class ScalingLayer(nn.Module):
    """[-1, 1] to the statistics the networks were trained with."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(SHIFT)[None, :, None, None])
        self.register_buffer("scale", torch.tensor(SCALE)[None, :, None, None])

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        """(x - shift) / scale."""
        return (x - self.shift) / self.scale


class Slices(nn.Module):
    """VGG16 up to relu5_3, or AlexNet up to relu5, returning the last ReLU of each of five slices."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        for number, layers in slices(net).items():
            built: OrderedDict[str, nn.Module] = OrderedDict()
            if number in POOLED[net]:
                built[str(layers[0][0] - 1)] = nn.MaxPool2d(POOL[net], stride=2)
            for index, inputs, outputs, side, stride in layers:
                pad = 2 if side == 11 else side // 2
                built[str(index)] = conv(inputs, outputs, side, stride=stride, padding=pad)
                built[str(index + 1)] = nn.ReLU()
            setattr(self, f"slice{number}", nn.Sequential(built))

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B C h w"]]:
        """Features of every slice; of VGG16 relu1_2, relu2_2, relu3_3, relu4_3, relu5_3."""
        features = []
        for number in range(1, 6):
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
    """Perceptual distance of two images, or of two clips frame by frame, by VGG16 or by AlexNet.

    Its weights take no gradient.
    """

    def __init__(self, net: Net = "vgg") -> None:
        super().__init__()
        self.scaling_layer = ScalingLayer()
        self.net = Slices(net)
        for number, layers in slices(net).items():
            setattr(self, f"lin{number - 1}", Head(layers[-1][2]))
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
