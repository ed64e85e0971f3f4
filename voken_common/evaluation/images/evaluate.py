"""Evaluating an image tokenizer: from a checkpoint and a data set to a report."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voken_common.config.schema.data import DataConfig
from voken_common.config.schema.tokenizer import Config
from voken_common.data.images import SampleLoader, ValidationRow
from voken_common.data.sources.base import ImageSource
from voken_common.data.sources.build import build_source
from voken_common.errors import UserError
from voken_common.evaluation import conventions, published
from voken_common.evaluation.batches import Row
from voken_common.evaluation.engine import Engine
from voken_common.evaluation.generated.references import ReferenceStatistics
from voken_common.evaluation.images.measure import ImageMeasurement, measure, reconstruct_ranks
from voken_common.evaluation.report import pictures
from voken_common.evaluation.report.model import Report
from voken_common.evaluation.shards import Shards
from voken_common.evaluation.summary import Summary, summarize


@dataclass(frozen=True)
class TokenizerEvaluation:
    """Settings of the evaluation.

    Attributes:
        data: its `train` source is what is evaluated on.
        measurement: of every image.
        output: folder of the report; measurements lie in `features` below it.
        max_images: spread over the source; None: all.
        samples_per_shard: what an interruption costs, rounded up to whole batches.
        process_index, process_count: which share of the shards.
        reference: statistics of the originals instead of measuring them.
        resamples: of the bootstrap.
        infinity: extrapolate rFID.
        checkpoint: as the user named it.
        data_set: for published figures; empty: guessed from the data's description.
    """

    data: DataConfig
    measurement: ImageMeasurement
    output: Path
    max_images: int | None = None
    samples_per_shard: int = 1024
    process_index: int = 0
    process_count: int = 1
    reference: ReferenceStatistics | None = None
    resamples: int = 1000
    infinity: bool = False
    checkpoint: str = ""
    data_set: str = ""


def evaluate_tokenizer(
    tokenizer: Any, engine: Engine, asked: TokenizerEvaluation, report: Callable[[int, int], Any] = lambda *_: None
) -> Report | None:
    """Measure what is missing, and once all shards are there sum up and draw the pictures.

    Args:
        tokenizer: an `ArrayTokenizer` with `config` and `fingerprint()`.
        engine: of the same framework.
        asked: what is wanted.
        report: told (images measured since the last call, images of this process).

    Returns:
        the report; None while other processes are not done.

    Raises:
        UserError: the data set is empty or none of it can be decoded, or the folder holds another evaluation.
    """
    config: Config = tokenizer.config
    source = build_source(asked.data.train)
    total = len(source) if asked.max_images is None else min(asked.max_images, len(source))
    if not total:
        raise UserError(f"{source.describe()}: there is nothing to evaluate on")
    batch = 1 if asked.measurement.original else asked.measurement.batch_size
    size = -(-asked.samples_per_shard // batch) * batch
    described = f"{source.describe()}" + (f", {total:,} of them spread over it" if total < len(source) else "")
    fingerprint = tokenizer.fingerprint()
    shards = Shards(
        asked.output / "features",
        _settings(asked, engine, source, fingerprint),
        total=total,
        size=size,
        process_index=asked.process_index,
        process_count=asked.process_count,
    )
    loader = _loader(source, asked, total)
    mine = sum(len(shards.samples(shard)) for shard in shards.missing())
    start = time.monotonic()
    bad = measure(tokenizer, engine, loader, shards, asked.measurement, lambda images: report(images, mine))
    seconds = time.monotonic() - start
    if not shards.all_there():
        return None
    summary = summarize(
        shards,
        asked.measurement.metrics,
        codes=config.quantizer.codebook_size,
        reference=None if asked.reference is None else asked.reference.fid,
        resamples=asked.resamples,
        infinity=asked.infinity,
    )
    drawn = pictures.draw(
        summary, asked.output, lambda ranks: reconstruct_ranks(tokenizer, loader, ranks, asked.measurement)
    )
    said = {
        "checkpoint": asked.checkpoint,
        "weights": f"fingerprint {fingerprint}",
        **conventions.of_images(asked.data, described, asked.measurement),
        **_more_conventions(asked, engine, summary),
        "precision": _precision(config),
        "versions": conventions.versions(engine),
    }
    left_out = total - summary.samples
    notes = [f"{left_out} images could not be decoded and are left out: {'; '.join(bad[:3])}"] if left_out else []
    notes += [f"{name}: {note}" for name, note in summary.notes.items() if name not in summary.values]
    speed = {"images": float(mine), "seconds": seconds, "images/s": mine / seconds} if mine else {}
    model = published.find_model(asked.checkpoint, config.name)
    return Report(
        "tokenizer",
        f"{model.name if model else config.name} on {described}",
        published.measures(summary, model, _circumstances(asked, engine, config, source.describe())),
        said,
        speed,
        tuple(notes),
        drawn,
    )


def _loader(source: ImageSource, asked: TokenizerEvaluation, total: int) -> Callable[[int], Row]:
    if not asked.measurement.original:
        return ValidationRow(source, asked.data, total)
    # With `none` only what is smaller than the crop is enlarged, and nothing is smaller than one pixel.
    whole = SampleLoader(source, asked.data.model_copy(update={"resize": "none", "image_size": 1, "cache": False}))
    return _WholeImages(whole, source)


class _WholeImages:
    """From the place in the evaluation order to a row with the whole image."""

    def __init__(self, loader: SampleLoader, source: ImageSource):
        self._loader, self._source = loader, source

    def __call__(self, rank: int) -> Row:
        import numpy as np

        from voken_common.data.bad_images import BadImage
        from voken_common.data.errors import ImageDecodeError

        index = self._source.evaluation_index(rank)
        try:
            image, label = self._loader.resized(index)
        except ImageDecodeError as error:
            grey = np.full((16, 16, 3), 128, np.uint8)
            return {"image": grey, "label": 0, "mask": 0.0, "bad": [BadImage(index, str(error))]}
        return {"image": image, "label": label, "mask": 1.0, "bad": []}


def _settings(asked: TokenizerEvaluation, engine: Engine, source: ImageSource, fingerprint: str) -> dict[str, Any]:
    """All that decides the measurements."""
    settings = {
        "tokenizer": fingerprint,
        "framework": engine.framework.split()[0],
        "data": asked.data.model_dump(mode="json", include={"train", "image_size", "resize", "exif_rotate"}),
        "source": source.describe(),
        "order": source.order_fingerprint(),
        **asked.measurement.settings(),
    }
    if asked.measurement.with_inception:
        settings["inception"] = engine.weights.inception().sha256
    return settings


def _more_conventions(asked: TokenizerEvaluation, engine: Engine, summary: Summary) -> dict[str, str]:
    said = {"images": f"{summary.samples:,}"}
    if asked.measurement.with_inception:
        said["Inception"] = conventions.inception(engine, asked.measurement.resize)
        said["Inception Score"] = "splits of 5000 in the evaluation order, logits without bias"
        if asked.reference is not None:
            said["originals"] = f"statistics of {asked.reference.count or 'an unsaid number of'} images from a file"
    nets = [name for name in ("lpips_alex", "lpips_vgg") if name in summary.values]
    if nets:
        said["LPIPS"] = f"v0.1, {' and '.join(nets).replace('lpips_', '')}, weights {engine.weights.lpips}"
    return said


def _precision(config: Config) -> str:
    return f"weights {config.precision.param_dtype}, computed in {config.precision.compute_dtype}; metrics in float64"


def _circumstances(
    asked: TokenizerEvaluation, engine: Engine, config: Config, described: str
) -> published.Circumstances:
    side = asked.data.image_size
    reasons, of_inception = [], []
    if config.precision.compute_dtype != "float32":
        reasons.append(f"computed in {config.precision.compute_dtype} instead of float32")
    if not asked.measurement.original and asked.data.resize != config.data.resize:
        reasons.append(f"resize {asked.data.resize}, the model's is {config.data.resize}")
    if asked.measurement.with_inception:
        if not engine.weights.published_inception:
            of_inception.append("another Inception file than the published one")
        if asked.measurement.resize != "half_pixel":
            of_inception.append(f"Inception resize {asked.measurement.resize} instead of half_pixel")
    return published.Circumstances(
        asked.data_set or published.guess_data_set(described),
        "original size" if asked.measurement.original else f"{side}x{side}",
        tuple(reasons),
        tuple(of_inception),
    )
