"""Measuring a video tokenizer over clips: Frechet video distance, and per frame PSNR, SSIM and LPIPS.

Both sides are truncated to bytes before I3D, as published. A set of fewer clips than asked for is topped up with random
repeats, drawn by a seed, which is how 10 000 clips came of UCF-101.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from voken_common.checkpoints.lpips_weights import Net
from voken_common.data.transforms import to_float
from voken_common.evaluation.batches import Batch, Row, batches
from voken_common.evaluation.engine import ArrayTokenizer, Engine
from voken_common.evaluation.images.measure import Found, run_shards
from voken_common.evaluation.shards import Shards
from voken_common.metrics import bounded_psnr, ssim
from voken_common.pixels import to_uint8

METRICS = ("rfvd", "psnr", "ssim", "lpips_alex", "lpips_vgg", "usage")
_NETS: dict[str, Net] = {"lpips_alex": "alex", "lpips_vgg": "vgg"}


@dataclass(frozen=True)
class VideoMeasurement:
    """Measures of every clip.

    Attributes:
        metrics: of `METRICS`.
        batch_size: clips per call of the networks.
        seed: of the repeats that top up a small set.
    """

    metrics: tuple[str, ...] = METRICS
    batch_size: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if unknown := [name for name in self.metrics if name not in METRICS]:
            raise ValueError(f"metric {unknown[0]!r} is not known for videos; expected some of {', '.join(METRICS)}")

    def settings(self) -> dict[str, Any]:
        """Return the conventions that decide the numbers, as plain values."""
        return asdict(self)


def topped_up(loader: Callable[[int], Row], clips: int, wanted: int, seed: int) -> Callable[[int], Row]:
    """`loader` for `wanted` places: every clip once, then random repeats."""
    if wanted <= clips:
        return loader
    repeats = np.random.default_rng(seed).integers(0, clips, wanted - clips)
    return lambda rank: loader(rank if rank < clips else int(repeats[rank - clips]))


def measure_clips(
    tokenizer: ArrayTokenizer,
    engine: Engine,
    loader: Callable[[int], Row],
    shards: Shards,
    measurement: VideoMeasurement,
    report: Callable[[int], Any] = lambda _: None,
) -> list[str]:
    """Measure the shards of this process that are missing; see `images.measure`."""
    threads = max(2, min(8, os.cpu_count() or 2))
    return run_shards(
        shards,
        lambda ranks: batches(loader, ranks, batch_size=measurement.batch_size, threads=threads, pixels="video"),
        lambda batch: _on_device(tokenizer, engine, batch, measurement),
        _on_host,
        report,
    )


def _on_device(tokenizer: ArrayTokenizer, engine: Engine, batch: Batch, measurement: VideoMeasurement) -> Found:
    if not batch.present.any():
        return {}
    clips = to_float(batch.pixels)
    ids = np.asarray(tokenizer.encode(clips))
    decoded = np.clip(np.asarray(tokenizer.decode(ids), np.float32), -1, 1)
    found = {"reconstruction": to_uint8(decoded), "ids": ids}
    for metric, net in _NETS.items():
        if metric in measurement.metrics:
            frames = [part.reshape(-1, *part.shape[2:]) for part in (clips, decoded)]
            found[metric] = engine.lpips(net, *frames).reshape(clips.shape[:2]).mean(axis=1)
    if "rfvd" in measurement.metrics:
        found["video"] = engine.video(to_float(found["reconstruction"]))
        found["original_video"] = engine.video(clips)
    return found


def _on_host(batch: Batch, found: Found) -> Found:
    """The measurements of the clips that count; PSNR and SSIM are means over their frames."""
    if not found:
        return {}
    kept = {name: np.asarray(value)[batch.present] for name, value in found.items()}
    decoded, clips = kept.pop("reconstruction"), batch.pixels[batch.present]
    frames = clips.reshape(-1, *clips.shape[2:]), decoded.reshape(-1, *decoded.shape[2:])
    kept["psnr"] = bounded_psnr(*frames).reshape(clips.shape[:2]).mean(axis=1)
    kept["ssim"] = ssim(*frames).reshape(clips.shape[:2]).mean(axis=1)
    kept["rank"] = batch.ranks[batch.present]
    count, pixels = len(clips), int(np.prod(clips.shape[1:4]))
    kept["pixels"] = np.full(count, pixels, np.int64)
    ids = kept.pop("ids").reshape(count, -1)
    kept["tokens"] = np.full(count, ids.shape[1], np.int64)
    kept["code"], kept["code_count"] = np.unique(ids, return_counts=True)
    return kept
