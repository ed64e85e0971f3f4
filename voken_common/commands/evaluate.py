"""Measure tokenizers and generators, and set the numbers beside the published ones.

    voken evaluate MODEL --data FOLDER                       a tokenizer: rFID, PSNR, SSIM, LPIPS, use of its codebook
    voken evaluate --samples FILE_OR_FOLDER --reference REF  images: FID, sFID, Inception Score, precision, recall
    voken evaluate MODEL --reference REF                     a generator, whose samples are drawn on the way
    voken evaluate --compare a.json b.json                   two reports: a table and a plot

Writes report.json, report.md and report.html with pictures into --output, and prints the table. The command may be
killed at any time: the same command goes on and ends with the same numbers. Several processes share the work if they
share --output: start each with --process-index I --process-count P, or in PyTorch by torchrun; the last one to finish
writes the report. docs/evaluation.md says what is measured, and how published rows are reproduced.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from voken_common.commands.frameworks import module_of
from voken_common.commands.options import (
    add_checkpoint_options,
    add_device,
    add_overrides,
    add_processes,
    check_processes,
    step_of,
)

_RESIZES = ("half_pixel", "tensorflow1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A model or samples, what they are measured on, and how."""
    parser.add_argument(
        "checkpoint", nargs="?", metavar="MODEL", help="a tokenizer, or with --reference a generator: a checkpoint"
    )
    add_checkpoint_options(parser)
    parser.add_argument("--output", metavar="DIR", default="evaluation", help="folder for the report")
    parser.add_argument("--compare", nargs=2, metavar=("A.json", "B.json"), help="compare two reports")
    _add_tokenizer(parser)
    _add_samples(parser)
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="images per call of a network")
    parser.add_argument("--samples-per-shard", type=int, default=1024, metavar="N", help="what an interruption costs")
    parser.add_argument(
        "--inception", default="auto", metavar="FILE", help="weights of FID's Inception; auto: cache, else download"
    )
    parser.add_argument(
        "--inception-resize",
        choices=_RESIZES,
        help="default half_pixel for tokenizers (as published), tensorflow1 for samples (the ADM evaluator)",
    )
    parser.add_argument(
        "--i3d", default="auto", metavar="FILE", help="weights of I3D for videos: a path, or i3d#sha256=HEX"
    )
    parser.add_argument("--lpips", default="auto", metavar="DIR", help="folder of LPIPS weights; auto: as --inception")
    parser.add_argument(
        "--fid-infinity", action="store_true", help="extrapolate the Frechet distance to infinitely many images"
    )
    parser.add_argument("--resamples", type=int, default=1000, metavar="N", help="of the bootstrap intervals; 0: none")
    add_device(parser)
    add_processes(parser)


def run(options: argparse.Namespace) -> int:
    """Evaluate or compare."""
    if options.compare is not None:
        return _compare(options)
    _check(options)
    backend = module_of(options, "evaluate")
    check_processes(options, backend.launched())
    options.step = step_of(options.step)
    from voken_common.evaluation.engine import MetricWeights

    engine = backend.open_engine(options, MetricWeights(options.inception, options.lpips, options.i3d))
    if options.samples is not None or options.reference is not None:
        return _evaluate_samples(options, backend, engine)
    tokenizer = backend.open_tokenizer(options)
    evaluate = _evaluate_videos if tokenizer.config.model.is_video else _evaluate_tokenizer
    return evaluate(options, tokenizer, engine)


def _add_tokenizer(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("tokenizers")
    group.add_argument(
        "--data",
        metavar="FOLDER_OR_FILE",
        help="a folder of images, a list of files, or YAML with a data section; default: the model's validation data",
    )
    group.add_argument("--split", choices=("train", "validation"), default="validation", help="which source of it")
    add_overrides(group, "data.KEY=VALUE", "change a setting of the data")  # type: ignore[arg-type]
    group.add_argument("--image-size", type=int, metavar="N", help="side of the central crop; default: the model's")
    group.add_argument("--resize", choices=("pil", "cv2", "none"), help="of the short side; default: the model's")
    group.add_argument(
        "--original-size", action="store_true", help="whole images, padded with grey and cropped back; no LPIPS"
    )
    group.add_argument("--multiple", type=int, metavar="N", help="of the padding; default: the model's downsampling")
    group.add_argument(
        "--max-images",
        type=int,
        metavar="N",
        help="spread over the data set; default: all. Of videos: clips, "
        "more than there are videos are random repeats by --seed",
    )
    group.add_argument(
        "--metrics",
        metavar="A,B",
        help="some of rfid,is,psnr,ssim,lpips_alex,lpips_vgg,usage, of videos rfvd for the first two; default: all",
    )
    group.add_argument(
        "--originals", metavar="FILE", help="statistics of the originals (voken statistics) instead of measuring them"
    )
    group.add_argument("--data-set", choices=("ImageNet", "COCO", "UCF-101"), help="default: guessed from the path")


def _add_samples(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("generated images")
    group.add_argument("--samples", metavar="PATH", help="an .npz with arr_0 uint8 (N, H, W, 3), or a folder of PNGs")
    group.add_argument(
        "--reference", metavar="PATH", help="an .npz (ADM's, pytorch-fid's, voken statistics) or a folder of pictures"
    )
    group.add_argument("--tokenizer", help="of a generator: checkpoint of its tokenizer")
    group.add_argument("--classes", default="all", help="of a generator: numbers and ranges, or all")
    group.add_argument("--num-per-class", type=int, default=50, metavar="N", help="of a generator: images of each")
    group.add_argument("--preset", metavar="MODEL", help="of a generator: settings of a published one")
    group.add_argument("--seed", type=int, default=0, help="of a generator's samples and their order")
    for name, text in (
        ("scale", "guidance scale"),
        ("temperature", "0 takes the most likely code"),
        ("top-k", "codes that stay; 0 means all"),
        ("top-p", "probability mass that stays"),
    ):
        group.add_argument(f"--{name}", metavar="A[,B]", help=f"of a generator: {text}")
    group.add_argument("--guidance", choices=("constant", "linear", "power-cosine"), help="of a generator")
    group.add_argument("--cache-dtype", choices=("float32", "bfloat16"), help="of a generator: keys and values")


def _check(options: argparse.Namespace) -> None:
    if options.checkpoint is None and options.samples is None:
        raise ValueError("nothing to evaluate: name a MODEL, --samples FILE_OR_FOLDER, or --compare A.json B.json")
    if options.checkpoint is not None and options.samples is not None:
        raise ValueError("MODEL and --samples: expected one of them")
    least = {
        "batch_size": 1,
        "samples_per_shard": 1,
        "resamples": 0,
        "max_images": 1,
        "multiple": 1,
        "num_per_class": 1,
    }
    for name, lowest in least.items():
        if (value := getattr(options, name)) is not None and value < lowest:
            raise ValueError(f"--{name.replace('_', '-')} {value}: expected at least {lowest}")


def _compare(options: argparse.Namespace) -> int:
    from voken_common.evaluation.report.compare import write_comparison
    from voken_common.evaluation.report.model import read_json

    first, second = (read_json(path) for path in options.compare)
    write_comparison(first, second, Path(options.output))
    print(f"written: {Path(options.output) / 'comparison.html'}")
    return 0


def _named_metrics(options: argparse.Namespace) -> tuple[str, ...] | None:
    return None if options.metrics is None else tuple(part.strip() for part in options.metrics.split(","))


def _evaluate_videos(options: argparse.Namespace, tokenizer: Any, engine: Any) -> int:
    from voken_common.data.tokens.requested import data_config
    from voken_common.evaluation.videos.evaluate import VideoEvaluation, evaluate_videos
    from voken_common.evaluation.videos.measure import METRICS, VideoMeasurement

    asked = VideoEvaluation(
        data=data_config(options, tokenizer.config),
        measurement=VideoMeasurement(_named_metrics(options) or METRICS, options.batch_size, options.seed),
        output=Path(options.output),
        clips=options.max_images,
        samples_per_shard=options.samples_per_shard,
        process_index=options.process_index,
        process_count=options.process_count,
        resamples=options.resamples,
        checkpoint=options.checkpoint,
        data_set=options.data_set or "",
    )
    with _Progress(options) as progress:
        report = evaluate_videos(tokenizer, engine, asked, progress)
    return _finish(options, report)


def _evaluate_tokenizer(options: argparse.Namespace, tokenizer: Any, engine: Any) -> int:
    from voken_common.data.tokens.requested import data_config
    from voken_common.evaluation.generated.references import read_statistics
    from voken_common.evaluation.images.evaluate import TokenizerEvaluation, evaluate_tokenizer
    from voken_common.evaluation.images.measure import METRICS, ImageMeasurement

    named = _named_metrics(options)
    every = tuple(name for name in METRICS if not (options.original_size and name.startswith("lpips")))
    reference = None if options.originals is None else read_statistics(options.originals)
    if options.originals is not None and (reference is None or reference.fid is None):
        raise ValueError(f"--originals {options.originals}: expected statistics of pool_3 features (mu, sigma)")
    measurement = ImageMeasurement(
        metrics=every if named is None else named,
        original=options.original_size,
        multiple=tokenizer.downsampling if options.multiple is None else options.multiple,
        resize=options.inception_resize or "half_pixel",
        with_originals=reference is None,
        batch_size=options.batch_size,
    )
    if measurement.multiple % tokenizer.downsampling:
        raise ValueError(f"--multiple {measurement.multiple}: expected a multiple of {tokenizer.downsampling}")
    asked = TokenizerEvaluation(
        data=data_config(options, tokenizer.config),
        measurement=measurement,
        output=Path(options.output),
        max_images=options.max_images,
        samples_per_shard=options.samples_per_shard,
        process_index=options.process_index,
        process_count=options.process_count,
        reference=reference,
        resamples=options.resamples,
        infinity=options.fid_infinity,
        checkpoint=options.checkpoint,
        data_set=options.data_set or "",
    )
    with _Progress(options) as progress:
        report = evaluate_tokenizer(tokenizer, engine, asked, progress)
    return _finish(options, report)


def _evaluate_samples(options: argparse.Namespace, backend: Any, engine: Any) -> int:
    from voken_common.evaluation.generated.evaluate import SampleEvaluation, drawn_samples, evaluate_samples
    from voken_common.evaluation.generated.samples import open_samples

    settings: dict[str, Any] = {}
    if options.samples is not None:
        samples = open_samples(options.samples)
    else:
        samples, settings = drawn_samples(backend.open_generator(options), options)
    asked = SampleEvaluation(
        output=Path(options.output),
        reference=options.reference,
        resize=options.inception_resize or "tensorflow1",
        batch_size=options.batch_size,
        samples_per_shard=options.samples_per_shard,
        process_index=options.process_index,
        process_count=options.process_count,
        infinity=options.fid_infinity,
        name=options.checkpoint or options.samples,
        settings=settings,
    )
    with _Progress(options) as progress:
        report = evaluate_samples(samples, engine, asked, progress)
    return _finish(options, report)


def _finish(options: argparse.Namespace, report: Any) -> int:
    from voken_common.evaluation.report.write import write_report

    if report is None:
        print(f"{options.output}: the shards of this process are measured, those of others are not")
        return 0
    write_report(report, Path(options.output))
    print(f"written: {Path(options.output) / 'report.html'}")
    return 0


class _Progress:
    """A bar that begins with the first batch."""

    def __init__(self, options: argparse.Namespace):
        many = options.process_count > 1
        self._description = f"process {options.process_index}" if many else "evaluating"
        self._bar: Any = None

    def __enter__(self) -> _Progress:
        return self

    def __call__(self, images: int, total: int) -> None:
        from tqdm import tqdm

        if self._bar is None:
            self._bar = tqdm(
                total=total,
                unit="image",
                desc=self._description,
                dynamic_ncols=True,
                mininterval=0.5 if sys.stderr.isatty() else 15.0,
            )
        self._bar.update(images)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
