"""Discriminators: the patch discriminator with batch norm, and the blur discriminator with group norm.

References: Isola et al., pix2pix (2017); Yu et al., MAGVIT-v2 (2023). Parameter names are slot numbers of the published
sequences. Shape legend: B batch, H/W pixels, S pixels of an image (H W) or a clip (T H W), s patches, C channels.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from voken_common.config.schema.adversarial import BlurConfig, DiscriminatorConfig, PatchGANConfig
from voken_common.config.schema.video import PatchGAN3DConfig
from voken_torch.device.kernels import at_least_float32
from voken_torch.models.layers import GroupNorm, conv
from voken_torch.quantizers.blocks import ReduceMean


class BatchNorm(nn.BatchNorm2d):
    """Batch norm of images and clips in float32 at least; with `reduce_mean`, over all `processes` together.

    In training mode every call normalises with its own statistics and moves the running ones, the unbiased variance
    among them.
    """

    reduce_mean: ReduceMean | None = None
    processes: int = 1

    def forward(self, x: Float[Tensor, "B C *S"]) -> Float[Tensor, "B C *S"]:
        """Same shape and dtype."""
        wide = at_least_float32(x)
        if self.training and self.reduce_mean is not None:
            return self._synchronised(wide, self.reduce_mean).to(x.dtype)
        return super().forward(wide).to(x.dtype)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of axes: nothing here is particular to images."""

    def _synchronised(self, x: Float[Tensor, "B C H W"], reduce_mean: ReduceMean) -> Float[Tensor, "B C H W"]:
        positions, shape = (0, *range(2, x.ndim)), (-1, *(1,) * (x.ndim - 2))
        mean = reduce_mean(x.mean(dim=positions))
        centred = x - mean.reshape(shape)
        variance = reduce_mean(centred.square().mean(dim=positions))
        with torch.no_grad():
            count = self.processes * x.numel() // x.shape[1]
            unbiased = variance * (count / max(count - 1, 1))
            for name, new in (("running_mean", mean), ("running_var", unbiased)):
                running = self.get_buffer(name)
                running.lerp_(new.to(running.dtype), 0.1)
            self.get_buffer("num_batches_tracked").add_(1)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return centred * scale.reshape(shape) + self.bias.reshape(shape)


class PatchGAN(nn.Module):
    """Convolutions with batch norm and leaky ReLU 0.2; one logit per patch. 4x4 over images, 3x3x3 over clips."""

    def __init__(self, config: PatchGANConfig | PatchGAN3DConfig, image_channels: int):
        super().__init__()
        convolution: Any = functools.partial(nn.Conv2d, kernel_size=4, padding=1)
        if isinstance(config, PatchGAN3DConfig):
            convolution = functools.partial(nn.Conv3d, kernel_size=3, padding=1)
        widths = [config.channels * min(2**n, 8) for n in range(config.layers + 1)]
        strides = config.strides
        layers: list[nn.Module] = [convolution(image_channels, widths[0], stride=strides[0]), nn.LeakyReLU(0.2)]
        for n in range(1, config.layers + 1):
            layers.append(convolution(widths[n - 1], widths[n], stride=strides[n], bias=False))
            layers += [BatchNorm(widths[n]), nn.LeakyReLU(0.2)]
        layers.append(convolution(widths[-1], 1, stride=strides[-1]))
        self.main = nn.Sequential(*layers)
        for layer in layers:
            if isinstance(layer, nn.Conv2d | nn.Conv3d):
                nn.init.normal_(layer.weight, 0.0, 0.02)
            elif isinstance(layer, BatchNorm):
                nn.init.normal_(layer.weight, 1.0, 0.02)

    def forward(self, x: Float[Tensor, "B 3 *S"]) -> Float[Tensor, "B 1 *s"]:
        """Logits in float32 at least; positive means real."""
        return at_least_float32(self.main(x))


def binomial_kernel(size: int) -> np.ndarray:
    """(size, size) outer product of binomial coefficients, divided by its sum; size 3, 4 or 5."""
    row = {3: (1, 2, 1), 4: (1, 3, 3, 1), 5: (1, 4, 6, 4, 1)}[size]
    kernel = np.outer(row, row).astype(np.float64)
    return kernel / kernel.sum()


class BlurPool(nn.Module):
    """Depthwise binomial blur with stride 2 and SAME padding (an odd row or column goes to the bottom or right)."""

    kernel: Tensor

    def __init__(self, size: int):
        super().__init__()
        kernel = torch.as_tensor(binomial_kernel(size), dtype=torch.get_default_dtype())
        self.register_buffer("kernel", kernel[None, None])

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
        """Half the resolution, rounded up."""
        channels, size = x.shape[1], self.kernel.shape[-1]
        left, right = _same_padding(x.shape[3], size)
        top, bottom = _same_padding(x.shape[2], size)
        kernel = self.kernel.to(x.dtype).expand(channels, 1, size, size)
        return F.conv2d(F.pad(x, (left, right, top, bottom)), kernel, stride=2, groups=channels)


def _same_padding(side: int, size: int) -> tuple[int, int]:
    total = max((-(-side // 2) - 1) * 2 + size - side, 0)
    return total // 2, total - total // 2


class BlurDiscriminator(nn.Module):
    """5x5 stem, stages of 3x3, downsampling, group norm and leaky ReLU 0.1, then 1x1 and 5x5 to logits."""

    def __init__(self, config: BlurConfig, image_channels: int):
        super().__init__()
        width = config.hidden_channels
        self.block_in = nn.Sequential(conv(image_channels, width, 5), nn.LeakyReLU(0.1))
        self.blocks = nn.ModuleList()
        for i in range(config.stages):
            leaving = config.hidden_channels * 2**i
            down = BlurPool(config.blur_kernel_size) if config.blur_resample else nn.AvgPool2d(2)
            norm = GroupNorm(leaving, epsilon=1e-5)
            self.blocks.append(nn.Sequential(conv(width, leaving, 3), down, norm, nn.LeakyReLU(0.1)))
            width = leaving
        self.to_logits = nn.Sequential(conv(width, width, 1), nn.LeakyReLU(0.1), conv(width, 1, 5))

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1 h w"]:
        """Logits in float32 at least; the same in training and in evaluation."""
        x = self.block_in(x)
        for block in self.blocks:
            x = block(x)
        return at_least_float32(self.to_logits(x))


def build_discriminator(config: DiscriminatorConfig, image_channels: int) -> PatchGAN | BlurDiscriminator:
    """The discriminator a configuration names."""
    if isinstance(config, BlurConfig):
        return BlurDiscriminator(config, image_channels)
    return PatchGAN(config, image_channels)


def synchronise_batch_norms(network: nn.Module, reduce_mean: ReduceMean, processes: int) -> None:
    """Let every batch norm of a network take its statistics over all processes."""
    for module in network.modules():
        if isinstance(module, BatchNorm):
            module.reduce_mean, module.processes = reduce_mean, processes
