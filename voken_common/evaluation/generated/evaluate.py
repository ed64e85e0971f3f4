"""Evaluating generated images: from samples and a reference to a report."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from voken_common.errors import UserError
from voken_common.evaluation import conventions, published
from voken_common.evaluation.engine import Engine
from voken_common.evaluation.generated.measure import METRICS, load_reference, measure_samples, summarize_samples
from voken_common.evaluation.generated.samples import DrawnSamples, PictureFolder, Samples
from voken_common.evaluation.report.model import Picture, Report
from voken_common.evaluation.shards import Shards
from voken_common.metrics.resize import Resize
from voken_common.visual import grid, save_png

_SHOWN = 32


@dataclass(frozen=True)
class SampleEvaluation:
    """Settings of the evaluation.

    Attributes:
        output: folder of the report; measurements lie in `features` below it.
        reference: path; None: only what needs none.
        resize: of Inception.
        batch_size: images per call of the network.
        samples_per_shard, process_index, process_count: as of tokenizers.
        infinity: extrapolate FID.
        name: as the user named the samples or the generator.
        settings: of drawn samples: all that decides them.
    """

    output: Path
    reference: str | None
    resize: Resize = "tensorflow1"
    batch_size: int = 32
    samples_per_shard: int = 1024
    process_index: int = 0
    process_count: int = 1
    infinity: bool = False
    name: str = ""
    settings: dict[str, Any] = field(default_factory=dict)


def drawn_samples(sampler: Any, options: argparse.Namespace) -> tuple[DrawnSamples, dict[str, Any]]:
    """Samples of a generator in the shuffled order in which published ones are measured, and what decides them."""
    from voken_common.sampling.job import Job, parse_classes

    job = Job(sampler, options)
    total = len(parse_classes(options.classes, sampler.config.model.classes)) * options.num_per_class
    order = np.random.default_rng(options.seed).permutation(total)
    about = f"{sampler.config.name}, {job.settings()['sampling']}"
    return DrawnSamples(total, lambda numbers: job.draw(order[numbers]), options.batch_size, about), job.settings()


def evaluate_samples(
    samples: Samples, engine: Engine, asked: SampleEvaluation, report: Callable[[int, int], Any] = lambda *_: None
) -> Report | None:
    """Measure what is missing, and once all shards are there sum up.

    Returns:
        the report; None while other processes are not done.

    Raises:
        UserError: samples or a reference that cannot be used, or the folder holds another evaluation.
    """
    total = len(samples)
    if not total:
        raise UserError(f"{samples.describe()}: there is nothing to evaluate")
    inception = engine.weights.inception().sha256
    about = {"samples": samples.describe(), "resize": asked.resize, "inception": inception, **asked.settings}
    shards = Shards(
        asked.output / "features",
        about | {"framework": engine.framework.split()[0], "batch_size": asked.batch_size},
        total=total,
        size=-(-asked.samples_per_shard // asked.batch_size) * asked.batch_size,
        process_index=asked.process_index,
        process_count=asked.process_count,
    )
    # The reference first: what is wrong with it is said before an hour of drawing.
    reference = None
    if asked.reference is not None:
        reference = load_reference(
            asked.reference,
            engine,
            resize=asked.resize,
            batch_size=asked.batch_size,
            with_features=True,
            report=lambda text: print(f"reference: {text}"),
        )
    mine = sum(len(shards.samples(shard)) for shard in shards.missing())
    start = time.monotonic()
    measure_samples(
        samples, engine, shards, resize=asked.resize, batch_size=asked.batch_size, report=lambda n: report(n, mine)
    )
    seconds = time.monotonic() - start
    if not shards.all_there():
        return None
    metrics = METRICS if reference is not None else ("is",)
    summary = summarize_samples(shards, reference, metrics, infinity=asked.infinity)
    said = {
        "samples": samples.describe(),
        "images": f"{total:,}",
        "reference": "none" if reference is None else f"{reference.describe}, sha256 {reference.sha256}",
        "Inception": conventions.inception(engine, asked.resize),
        "features": "FID, precision and recall: pool_3; sFID: 7 channels of Mixed_6d; Inception Score: logits without "
        "bias, splits of 5000 in order; precision and recall: 3 neighbours",
        "versions": conventions.versions(engine),
    }
    model = published.find_model(asked.name)
    circumstances = published.Circumstances("ImageNet", "256x256", (), _reasons(engine, asked))
    notes = [f"{name}: {note}" for name, note in summary.notes.items() if name not in summary.values]
    if isinstance(samples, PictureFolder) and "inception_score" in summary.values and total > 1:
        notes.append(
            "pictures of a folder are measured in the order of their names: if that is by class, the splits of "
            "the Inception Score hold few classes each and it comes out lower than of shuffled samples"
        )
    shown = samples.read(0, min(total, _SHOWN))
    save_png(asked.output / "samples.png", grid(list(shown), columns=8))
    return Report(
        "samples",
        f"{samples.describe()} against {'no reference' if reference is None else reference.describe}",
        published.measures(summary, model, circumstances),
        said,
        {"images": float(mine), "seconds": seconds, "images/s": mine / seconds} if mine else {},
        tuple(notes),
        (Picture("samples.png", f"The first {len(shown)} images."),),
    )


def _reasons(engine: Engine, asked: SampleEvaluation) -> tuple[str, ...]:
    reasons = []
    if not engine.weights.published_inception:
        reasons.append("another Inception file than the published one")
    if asked.resize != "tensorflow1":
        reasons.append(f"Inception resize {asked.resize} instead of tensorflow1")
    return tuple(reasons)
