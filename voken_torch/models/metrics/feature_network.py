"""A feature network built from its written-down layers: convolutions with batch norm, pools, concatenated branches.

Shape legend: B batch, S spatial axes (two or three), C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from voken_common.checkpoints import weight_names as names
from voken_common.checkpoints.feature_networks.layers import Conv, FeatureNetwork, Padding, Pool, Step, sides
from voken_common.metrics.resize import Resize, taps


class Unit(nn.Module):
    """Convolution without bias, batch norm with stored statistics, ReLU."""

    def __init__(self, conv: Conv, leaf: str, epsilon: float):
        super().__init__()
        self._conv, self._leaf = conv, leaf
        kind: Any
        kind, norm = (nn.Conv2d, nn.BatchNorm2d) if len(conv.kernel) == 2 else (nn.Conv3d, nn.BatchNorm3d)
        self.add_module(leaf, kind(conv.inputs, conv.outputs, conv.kernel, stride=conv.stride, bias=False))
        self.bn = norm(conv.outputs, eps=epsilon)

    def forward(self, x: Float[Tensor, "B C *S"]) -> Float[Tensor, "B c *s"]:
        """Padded as the layer says."""
        conv, padding = self._conv, sides(self._conv.padding, self._conv.kernel, self._conv.stride, tuple(x.shape[2:]))
        weight = self.get_submodule(self._leaf).get_parameter("weight")
        function = F.conv2d if len(conv.kernel) == 2 else F.conv3d
        if all(before == after for before, after in padding):
            y = function(x, weight, stride=conv.stride, padding=tuple(before for before, _ in padding))
        else:
            y = function(_padded(x, padding), weight, stride=conv.stride)
        return F.relu_(self.bn(y))


class FeatureExtractor(nn.Module):
    """The stages of a feature network, under the published names; in evaluation mode, without gradients."""

    def __init__(self, network: FeatureNetwork):
        super().__init__()
        self._network = network
        for conv in network.convolutions():
            _attach(self, conv.name, Unit(conv, network.conv_leaf, network.epsilon))
        for key, shape in network.head:
            path, _, leaf = key.rpartition(".")
            _attach(self, path).register_parameter(leaf, nn.Parameter(torch.zeros(shape)))
        self.requires_grad_(False).eval()

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take the weights of a published file, all of them.

        Raises:
            NameMismatch: others than the network's.
        """
        expected = {k: v for k, v in self.state_dict().items() if not k.endswith("num_batches_tracked")}
        names.require_same_shapes(arrays, expected, self._network.name)
        for key, target in expected.items():
            target.copy_(torch.as_tensor(np.array(arrays[key])))

    def stage(self, name: str, x: Float[Tensor, "B C *S"]) -> Float[Tensor, "B c *s"]:
        """The output of one stage for the output of the stage before it."""
        for step in dict(self._network.stages)[name]:
            x = self._step(step, x)
        return x

    def unit(self, name: str, x: Float[Tensor, "B C *S"]) -> Float[Tensor, "B c *s"]:
        """One convolution with its norm and ReLU."""
        result: Tensor = self.get_submodule(name)(x)
        return result

    def _step(self, step: Step, x: Tensor) -> Tensor:
        if isinstance(step, Conv):
            return self.unit(step.name, x)
        if isinstance(step, Pool):
            return _pool(step, x)
        outputs = []
        for part in step.parts:
            y = x
            for inner in part:
                y = self._step(inner, y)
            outputs.append(y)
        return torch.cat(outputs, dim=1)


def resize_bilinear(images: Float[Tensor, "B C H W"], side: int, resize: Resize) -> Float[Tensor, "B C s s"]:
    """To `side` x `side`, as `voken_common.metrics.resize` defines it."""
    if resize == "half_pixel":
        return F.interpolate(images, size=(side, side), mode="bilinear", align_corners=False)
    for axis in (2, 3):
        low, high, weight = taps(images.shape[axis], side, resize)
        shape = [1] * images.ndim
        shape[axis] = side
        first, second = (images.index_select(axis, torch.as_tensor(at, device=images.device)) for at in (low, high))
        factor = torch.as_tensor(np.asarray(weight), device=images.device).to(images.dtype)
        images = first + (second - first) * factor.reshape(shape)
    return images


def _pool(pool: Pool, x: Tensor) -> Tensor:
    padding = sides(pool.padding, pool.kernel, pool.stride, tuple(x.shape[2:]))
    if pool.kind == "average":
        before = tuple(first for first, _ in padding)
        return F.avg_pool2d(x, pool.kernel, pool.stride, before, count_include_pad=False)
    # What is pooled comes out of a ReLU, so that zeros for padding never are the maximum of anything else.
    function = F.max_pool2d if len(pool.kernel) == 2 else F.max_pool3d
    return function(_padded(x, padding), pool.kernel, pool.stride)


def _padded(x: Tensor, padding: Padding) -> Tensor:
    if not any(map(any, padding)):
        return x
    return F.pad(x, [side for axis in reversed(padding) for side in axis])


def _attach(root: nn.Module, path: str, module: nn.Module | None = None) -> nn.Module:
    """The module at a dotted path, made of empty modules where there is none, or `module` put there."""
    *parents, last = path.split(".")
    for name in parents:
        if name not in root._modules:
            root.add_module(name, nn.Module())
        root = root.get_submodule(name)
    if module is not None or last not in root._modules:
        root.add_module(last, module or nn.Module())
    return root.get_submodule(last)
