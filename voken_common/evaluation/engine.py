"""Interface between evaluation and a framework: a tokenizer and the networks of metrics, on NumPy arrays.

Shapes: B batch, H/W pixels, T frames, h/w tokens; images and clips are channels last.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Float, Float32, Int, Num

from voken_common.checkpoints.downloads import WEIGHTS
from voken_common.checkpoints.feature_networks.weights import FeatureWeights, i3d_weights, inception_weights
from voken_common.checkpoints.lpips_weights import Net
from voken_common.metrics.resize import Resize


class Features(NamedTuple):
    """Features of FID's Inception, float32.

    Attributes:
        pool3: for FID, precision and recall.
        spatial: for sFID.
        logits: without bias, for the Inception Score.
    """

    pool3: Float32[np.ndarray, "B 2048"]
    spatial: Float32[np.ndarray, "B 2023"]
    logits: Float32[np.ndarray, "B 1008"]


@dataclass(frozen=True)
class MetricWeights:
    """Sources of the weights of the metrics' networks: `auto`, or a file (for LPIPS a folder).

    Attributes:
        inception_setting, lpips, i3d_setting: as `downloads.resolve` takes them.
        cache_dir: instead of the user's cache.
    """

    inception_setting: str = "auto"
    lpips: str = "auto"
    i3d_setting: str = "auto"
    cache_dir: str | Path | None = None

    def inception(self) -> FeatureWeights:
        """The weights of FID's Inception."""
        return _inception(self.inception_setting, self.cache_dir)

    def i3d(self) -> FeatureWeights:
        """The weights of I3D."""
        return _i3d(self.i3d_setting, self.cache_dir)

    @property
    def published_inception(self) -> bool:
        """The file is the one that published figures rest on."""
        return self.inception().sha256 == WEIGHTS["inception_fid"].sha256


class Engine(Protocol):
    """The networks of metrics; every result is on the host and in float32."""

    framework: str
    weights: MetricWeights

    def inception(self, images: Num[np.ndarray, "B H W 3"], resize: Resize) -> Features:
        """Features of images, uint8 or in [-1, 1]."""

    def lpips(
        self, net: Net, first: Float[np.ndarray, "B H W 3"], second: Float[np.ndarray, "B H W 3"]
    ) -> Float[np.ndarray, " B"]:
        """Distances of pairs in [-1, 1]."""

    def video(self, clips: Float[np.ndarray, "B T H W 3"]) -> Float[np.ndarray, "B 400"]:
        """I3D logits of clips in [-1, 1]."""


class ArrayTokenizer(Protocol):
    """An image or video tokenizer; of images (B, H, W, 3) and ids (B, h, w), or clips with a time axis after B."""

    @property
    def downsampling(self) -> int:
        """Pixels per token along one side."""

    def encode(self, images: Float[np.ndarray, "B *S 3"]) -> Int[np.ndarray, "B *s"]:
        """Ids of images in [-1, 1]."""

    def decode(self, ids: Int[np.ndarray, "B *s"]) -> Float[np.ndarray, "B *S 3"]:
        """Images in [-1, 1] of ids."""


@functools.lru_cache(maxsize=1)
def _inception(setting: str, cache_dir: str | Path | None) -> FeatureWeights:
    return inception_weights(setting, cache_dir=cache_dir)


@functools.lru_cache(maxsize=1)
def _i3d(setting: str, cache_dir: str | Path | None) -> FeatureWeights:
    return i3d_weights(setting, cache_dir=cache_dir)
