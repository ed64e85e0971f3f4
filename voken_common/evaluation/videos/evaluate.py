"""Evaluating a video tokenizer: from a checkpoint and a folder of videos to a report."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from voken_common.config.schema.data import DataConfig
from voken_common.data.loaders import validation_rows
from voken_common.data.sources.build import build_source
from voken_common.errors import UserError
from voken_common.evaluation import conventions, published
from voken_common.evaluation.engine import Engine
from voken_common.evaluation.report import pictures
from voken_common.evaluation.report.model import Report
from voken_common.evaluation.shards import Shards
from voken_common.evaluation.summary import summarize
from voken_common.evaluation.videos.measure import VideoMeasurement, measure_clips, topped_up
from voken_common.pixels import from_uint8


@dataclass(frozen=True)
class VideoEvaluation:
    """Settings of the evaluation; as `tokenizer.TokenizerEvaluation`, with clips for images.

    Attributes:
        data: its `train` source is what is evaluated on.
        measurement: of every clip.
        output: folder of the report.
        clips: how many; more than there are videos: random repeats; None: one of every video.
        samples_per_shard, process_index, process_count, resamples, checkpoint, data_set: as there.
    """

    data: DataConfig
    measurement: VideoMeasurement
    output: Path
    clips: int | None = None
    samples_per_shard: int = 128
    process_index: int = 0
    process_count: int = 1
    resamples: int = 1000
    checkpoint: str = ""
    data_set: str = ""


def evaluate_videos(
    tokenizer: Any, engine: Engine, asked: VideoEvaluation, report: Callable[[int, int], Any] = lambda *_: None
) -> Report | None:
    """Measure what is missing, and once all shards are there sum up; None while other processes are not done.

    Raises:
        UserError: there are no videos, or none can be decoded.
    """
    source, measurement = build_source(asked.data.train), asked.measurement
    videos = len(source)
    if not videos:
        raise UserError(f"{source.describe()}: there is nothing to evaluate on")
    total = asked.clips or videos
    fingerprint = tokenizer.fingerprint()
    with_fvd = "rfvd" in measurement.metrics
    shards = Shards(
        asked.output / "features",
        {
            "tokenizer": fingerprint,
            "framework": engine.framework.split()[0],
            "data": asked.data.model_dump(mode="json", include={"train", "image_size", "resize"}),
            "source": source.describe(),
            "i3d": engine.weights.i3d().sha256 if with_fvd else None,
            **measurement.settings(),
        },
        total=total,
        size=-(-asked.samples_per_shard // measurement.batch_size) * measurement.batch_size,
        process_index=asked.process_index,
        process_count=asked.process_count,
    )
    loader = topped_up(validation_rows(source, asked.data, videos), videos, total, measurement.seed)
    mine = sum(len(shards.samples(shard)) for shard in shards.missing())
    start = time.monotonic()
    bad = measure_clips(tokenizer, engine, loader, shards, measurement, lambda clips: report(clips, mine))
    seconds = time.monotonic() - start
    if not shards.all_there():
        return None
    codes = tokenizer.config.quantizer.codebook_size
    summary = summarize(shards, measurement.metrics, codes=codes, resamples=asked.resamples)

    def middle_frames(ranks: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        pairs = []
        for rank in ranks:
            clip = loader(rank)["video"]
            batch = from_uint8(np.repeat(clip[None], measurement.batch_size, axis=0))
            decoded = np.clip(np.asarray(tokenizer.decode(tokenizer.encode(batch))), -1, 1)[0]
            pairs.append((clip[len(clip) // 2], decoded[len(clip) // 2]))
        return pairs

    frames = getattr(asked.data.train, "frames", 0)
    said = {
        "checkpoint": asked.checkpoint,
        "weights": f"fingerprint {fingerprint}",
        "data": source.describe(),
        "clips": f"{total:,} of {videos:,} videos, {frames} frames from the middle"
        + (f", topped up by random repeats with seed {measurement.seed}" if total > videos else ""),
        "clips that count": f"{summary.samples:,}",
        "size": f"{asked.data.image_size}x{asked.data.image_size}, central crop, resize {asked.data.resize}",
        "PSNR, SSIM, LPIPS": "per frame, mean over a clip's frames, then over clips; bytes truncated from [-1, 1]",
        "versions": conventions.versions(engine),
    }
    if with_fvd:
        sha256 = engine.weights.i3d().sha256
        said["I3D"] = f"Kinetics-400 logits, bytes, bilinear with half-pixel centres to 224, sha256 {sha256}"
    model = published.find_model(asked.checkpoint, tokenizer.config.name)
    side = asked.data.image_size
    circumstances = published.Circumstances(
        asked.data_set or published.guess_data_set(source.describe()), f"{frames}x{side}x{side}"
    )
    left_out = total - summary.samples
    return Report(
        "video",
        f"{model.name if model else tokenizer.config.name} on {source.describe()}",
        published.measures(summary, model, circumstances),
        said,
        {"clips": float(mine), "seconds": seconds, "clips/s": mine / seconds} if mine else {},
        (f"{left_out} clips could not be decoded and are left out: {'; '.join(bad[:3])}",) if left_out else (),
        pictures.draw(summary, asked.output, middle_frames),
    )
