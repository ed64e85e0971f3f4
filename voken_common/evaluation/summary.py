"""From measurements on disk to the numbers of a report: means, distances, scores, use of the codebook."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from voken_common.evaluation.shards import Shards
from voken_common.evaluation.uncertainty import bootstrap, extrapolated_distance
from voken_common.metrics import (
    CodebookCounter,
    GaussianStatistics,
    InceptionScore,
    frechet_distance,
)
from voken_common.metrics.frechet import Gaussian

PER_IMAGE = ("psnr", "ssim", "lpips_alex", "lpips_vgg")


@dataclass(frozen=True)
class Summary:
    """The numbers over all samples.

    Attributes:
        values: metric to value.
        intervals: metric to the ends of its 95 % interval, for those that have one.
        samples: that were measured.
        per_image: rank and per-image metrics in the evaluation order, for choosing pictures.
        counts: of every code; None where no tokenizer was measured.
        notes: metric to what has to be said beside it.
    """

    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    samples: int
    per_image: dict[str, np.ndarray]
    counts: np.ndarray | None
    notes: dict[str, str] = field(default_factory=dict)


def summarize(
    shards: Shards,
    metrics: tuple[str, ...],
    *,
    codes: int,
    reference: Gaussian | None = None,
    resamples: int = 1000,
    infinity: bool = False,
) -> Summary:
    """Sum up a tokenizer's evaluation, one shard in memory at a time.

    Args:
        shards: all measured.
        metrics: of `images.METRICS`, or of `videos.METRICS`.
        codes: size of the codebook.
        reference: statistics of the originals, where they were not measured.
        resamples: of the bootstrap; 0: no intervals.
        infinity: extrapolate the Frechet distance to infinitely many images.

    Raises:
        ValueError: not one image could be decoded.
    """
    gathered = _gather(shards, metrics, codes)
    samples = len(gathered.columns["rank"])
    if not samples:
        raise ValueError("not one image of the data set could be decoded: there is nothing to measure")
    values: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    notes: dict[str, str] = {}
    for name in PER_IMAGE:
        if name in metrics and name in gathered.columns:
            _add_mean(name, gathered.columns[name], values, intervals, notes, resamples)
    _add_inception(gathered, metrics, reference, values, notes)
    if infinity and "rfid" in values and reference is None:
        values["rfid_infinity"] = extrapolated_distance(shards, samples)
    if "usage" in metrics:
        counter = gathered.counter
        values["codebook_usage"], values["codebook_perplexity"] = counter.usage, counter.perplexity
        tokens, pixels = int(gathered.columns["tokens"].sum()), int(gathered.columns["pixels"].sum())
        values["bits_per_pixel"] = float(np.log2(codes)) * tokens / pixels
        values["entropy_bits_per_pixel"] = float(np.log2(max(counter.perplexity, 1.0))) * tokens / pixels
    counts = gathered.counter.counts if "usage" in metrics else None
    return Summary(values, intervals, samples, gathered.columns, counts, notes)


@dataclass
class _Gathered:
    columns: dict[str, np.ndarray]
    counter: CodebookCounter
    score: InceptionScore | None
    generated: GaussianStatistics | None
    originals: GaussianStatistics | None

    def take(self, shard: dict[str, np.ndarray], originals: str, generated: str) -> None:
        """Add a shard's features to the statistics of both sides."""
        self.generated = self.generated or GaussianStatistics(shard[generated].shape[1])
        self.generated.update(shard[generated])
        if originals in shard:
            self.originals = self.originals or GaussianStatistics(shard[originals].shape[1])
            self.originals.update(shard[originals])


def _gather(shards: Shards, metrics: tuple[str, ...], codes: int) -> _Gathered:
    """One pass over the shards."""
    columns: dict[str, list[np.ndarray]] = {}
    found = _Gathered({}, CodebookCounter(codes), None, None, None)
    for shard in shards:
        for name in ("rank", "pixels", "tokens", *PER_IMAGE):
            if name in shard:
                columns.setdefault(name, []).append(shard[name])
        if not len(shard["rank"]):
            continue
        found.counter.add_counts(shard["code"], shard["code_count"])
        if "is" in metrics:
            found.score = found.score or InceptionScore(shard["logits"].shape[1])
            found.score.update_logits(shard["logits"])
        if "rfid" in metrics:
            found.take(shard, "original_pool3", "pool3")
        if "rfvd" in metrics:
            found.take(shard, "original_video", "video")
    found.columns = {name: np.concatenate(parts) for name, parts in columns.items()}
    return found


def _add_mean(
    name: str,
    column: np.ndarray,
    values: dict[str, float],
    intervals: dict[str, tuple[float, float]],
    notes: dict[str, str],
    resamples: int,
) -> None:
    finite = column[np.isfinite(column)]
    if len(finite) < len(column):
        notes[name] = f"{len(column) - len(finite)} images without a finite value are left out of the mean"
    if not len(finite):
        return
    values[name] = float(finite.mean(dtype=np.float64))
    if resamples and len(finite) > 1:
        intervals[name] = bootstrap(finite, resamples=resamples)


def _add_inception(
    gathered: _Gathered,
    metrics: tuple[str, ...],
    reference: Gaussian | None,
    values: dict[str, float],
    notes: dict[str, str],
) -> None:
    if gathered.score is not None:
        values["inception_score"], values["inception_score_std"] = gathered.score.result()
    name = "rfvd" if "rfvd" in metrics else "rfid"
    if name not in metrics or gathered.generated is None:
        return
    first: Any = reference if reference is not None else gathered.originals
    if gathered.generated.count < 2 or first is None:
        notes[name] = "a Frechet distance needs at least 2 samples"
        return
    values[name] = frechet_distance(first, gathered.generated)
