"""The metrics of evaluation during training: what `validation.metrics` asks for, added up beside PSNR and usage.

Features go into streaming statistics, so that memory does not grow with the number of images. The Inception Score is
not among them: it depends on the order of images, and processes see theirs in orders of their own.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from voken_common.checkpoints.lpips_weights import Net
from voken_common.evaluation.engine import Engine
from voken_common.metrics import Average, GaussianStatistics, frechet_distance, ssim
from voken_common.metrics.resize import Resize

_NETS: dict[str, Net] = {"lpips_alex": "alex", "lpips_vgg": "vgg"}
_RESIZE: Resize = "half_pixel"


class MetricTotals:
    """Sums of the metrics that were asked for.

    Args:
        names: of `ValidationConfig.metrics`.
        engine: their networks; None only for sums that are merged and sent.
    """

    def __init__(self, names: tuple[str, ...], engine: Engine | None):
        self._names, self._engine = names, engine
        self._averages: dict[str, Average] = {}
        self._features: tuple[GaussianStatistics, GaussianStatistics] | None = None

    def add(
        self,
        originals: Float[np.ndarray, "b h w c"],
        reconstructions: Float[np.ndarray, "b h w c"],
        present: Bool[np.ndarray, " b"],
    ) -> None:
        """Take a batch; rows that are not `present` pass through the networks, whose batches keep one size."""
        if not self._names or not present.any():
            return
        assert self._engine is not None
        originals, reconstructions = (np.asarray(x, np.float32) for x in (originals, reconstructions))
        if "ssim" in self._names:
            self._average("ssim").update(ssim(originals[present], reconstructions[present]))
        for name, net in _NETS.items():
            if name in self._names:
                self._average(name).update(self._engine.lpips(net, originals, reconstructions)[present])
        if "rfid" in self._names:
            pair = [self._engine.inception(x, _RESIZE).pool3[present] for x in (originals, reconstructions)]
            if self._features is None:
                width = pair[0].shape[1]
                self._features = GaussianStatistics(width), GaussianStatistics(width)
            for statistics, features in zip(self._features, pair, strict=True):
                statistics.update(features)

    def merge(self, other: MetricTotals) -> None:
        """Take the sums of another process."""
        for name, average in other._averages.items():
            self._average(name).merge(average)
        if other._features is None:
            return
        if self._features is None:
            width = other._features[0].mean.size
            self._features = GaussianStatistics(width), GaussianStatistics(width)
        for mine, theirs in zip(self._features, other._features, strict=True):
            mine.merge(theirs)

    def sums(self) -> MetricTotals:
        """The sums without the networks, to be sent to other processes."""
        copy = MetricTotals(self._names, None)
        copy.merge(self)
        return copy

    def result(self) -> dict[str, float]:
        """Metric to value; a Frechet distance needs two images."""
        found = {name: average.mean for name, average in self._averages.items()}
        if self._features is not None and self._features[0].count > 1:
            found["rfid"] = frechet_distance(*self._features)
        return found

    def _average(self, name: str) -> Average:
        return self._averages.setdefault(name, Average())
