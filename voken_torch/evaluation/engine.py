"""The networks that metrics need, in PyTorch, on this process's device."""

from __future__ import annotations

import functools

import numpy as np
import torch
from jaxtyping import Float, Num
from torch import Tensor

from voken_common.checkpoints import weight_names as names
from voken_common.checkpoints.lpips_weights import Net, lpips_weights
from voken_common.evaluation.engine import Features, MetricWeights
from voken_common.metrics.resize import Resize
from voken_torch.device.runtime import Runtime
from voken_torch.models.lpips import LPIPS
from voken_torch.models.metrics.i3d import VideoNetwork
from voken_torch.models.metrics.inception import Inception


class Engine:
    """See `voken_common.evaluation.engine.Engine`.

    Args:
        weights: where the networks' weights come from.
        runtime: the device; the CPU by default.
    """

    framework = f"torch {torch.__version__}"

    def __init__(self, weights: MetricWeights, runtime: Runtime | None = None):
        self.weights, self._runtime = weights, runtime or Runtime()

    @torch.no_grad()
    def inception(self, images: Num[np.ndarray, "B H W 3"], resize: Resize) -> Features:
        """Features of images, uint8 or in [-1, 1]."""
        return Features(*(part.cpu().numpy() for part in self._inception(self._placed(images), resize)))

    @torch.no_grad()
    def lpips(
        self, net: Net, first: Float[np.ndarray, "B H W 3"], second: Float[np.ndarray, "B H W 3"]
    ) -> Float[np.ndarray, " B"]:
        """Distances of pairs in [-1, 1]."""
        distances: np.ndarray = self._lpips(net)(self._placed(first), self._placed(second)).cpu().numpy()
        return distances

    @torch.no_grad()
    def video(self, clips: Float[np.ndarray, "B T H W 3"]) -> Float[np.ndarray, "B 400"]:
        """I3D logits of clips in [-1, 1]."""
        logits: np.ndarray = self._i3d(self._placed(clips)).cpu().numpy()
        return logits

    @functools.cached_property
    def _inception(self) -> Inception:
        network = Inception()
        network.load(self.weights.inception().arrays)
        return network.to(self._runtime.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @functools.cached_property
    def _i3d(self) -> VideoNetwork:
        network = VideoNetwork()
        network.load(self.weights.i3d().arrays)
        return network.to(self._runtime.device)

    @functools.cache  # noqa: B019 - an engine lives as long as its process
    def _lpips(self, net: Net) -> LPIPS:
        with torch.random.fork_rng(devices=[]):
            network = LPIPS(net).eval()
        arrays = {key: torch.tensor(array) for key, array in lpips_weights(net, self.weights.lpips).items()}
        names.require_same_shapes(arrays, network.state_dict(), f"LPIPS {net}")
        network.load_state_dict(arrays, strict=True)
        return network.to(self._runtime.device)

    def _placed(self, array: np.ndarray) -> Tensor:
        """On the device, channels before space."""
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._runtime.device).movedim(-1, 1)
