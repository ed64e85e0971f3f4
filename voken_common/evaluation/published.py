"""Published figures beside ours: which one belongs to a measure, and why the two may not be comparable."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from voken_common.evaluation.report.model import Measure
from voken_common.evaluation.summary import Summary
from voken_common.published.models import PublishedModel, find

_METRIC = {
    "rfid": "rFID",
    "rfvd": "rFVD",
    "psnr": "PSNR",
    "ssim": "SSIM",
    "lpips_alex": "LPIPS",
    "lpips_vgg": "LPIPS",
    "codebook_usage": "usage",
    "fid": "gFID",
    "inception_score": "IS",
}
_SAMPLES = {"ImageNet": 50_000, "UCF-101": 10_000}
"""Behind published figures; of COCO no number is recorded."""
_GENERATED = 50_000
_FRECHET = ("rfid", "rfid_infinity", "fid", "sfid", "fid_infinity", "rfvd")
_OF_INCEPTION = (*_FRECHET, "inception_score")
DATA_SETS = ("ImageNet", "COCO", "UCF-101")


@dataclass(frozen=True)
class Circumstances:
    """Conditions under which a number compares with a published one.

    Attributes:
        data_set: of `DATA_SETS`, or empty where it is another or not known.
        size: as in `Figure.on` after the data set: "256x256", "original size", "17x128x128".
        reasons: against any comparison: precision, resize.
        inception_reasons: against that of what rests on Inception or I3D.
    """

    data_set: str
    size: str
    reasons: tuple[str, ...] = ()
    inception_reasons: tuple[str, ...] = ()


def guess_data_set(text: str) -> str:
    """The data set that a path or a description speaks of; empty where it does not."""
    lowered = text.lower()
    words = {"imagenet": "ImageNet", "ilsvrc": "ImageNet", "coco": "COCO", "ucf101": "UCF-101", "ucf-101": "UCF-101"}
    return next((name for word, name in words.items() if word in lowered), "")


def find_model(*names: str) -> PublishedModel | None:
    """The published model that one of these names is of, the first that is known."""
    for name in names:
        with contextlib.suppress(KeyError):
            return find(name)
    for name in names:
        repository = name.partition("@")[0].strip("/")
        with contextlib.suppress(ImportError):
            from voken_common.published import models

            for model in models.MODELS:
                if repository and getattr(model, "repository", None) == repository:
                    return model
    return None


def measures(summary: Summary, model: PublishedModel | None, circumstances: Circumstances) -> tuple[Measure, ...]:
    """The numbers of a summary in their order, each beside the figure that was published for it."""
    found = []
    for key, value in summary.values.items():
        published, published_on = _figure(key, model, circumstances)
        reasons = _reasons(key, summary.samples, circumstances) if published is not None else ()
        note = summary.notes.get(key, "")
        if published is not None and key.startswith("lpips"):
            note = "; ".join(filter(None, (note, "the published LPIPS does not say which network")))
        if key in _FRECHET and published is None and summary.samples < _GENERATED:
            reasons = _few(summary.samples, _GENERATED)
            note = "; ".join(filter(None, (note, f"{reasons[0]}: not to be set beside published ones")))
        found.append(Measure(key, value, summary.intervals.get(key), published, published_on, reasons, note))
    return tuple(found)


def _figure(key: str, model: PublishedModel | None, circumstances: Circumstances) -> tuple[float | None, str]:
    if model is None or key not in _METRIC:
        return None, ""
    # A generator's figures are on ImageNet alone, whatever the samples are called.
    data_set = "ImageNet" if model.family == "generator" else circumstances.data_set
    for figure in model.figures:
        if figure.metric == _METRIC[key] and figure.on == f"{data_set} {circumstances.size}":
            return figure.value, figure.on
    return None, ""


def _reasons(key: str, samples: int, circumstances: Circumstances) -> tuple[str, ...]:
    needed = _SAMPLES.get(circumstances.data_set)
    few = () if needed is None or samples >= needed else _few(samples, needed)
    return circumstances.reasons + (circumstances.inception_reasons if key in _OF_INCEPTION else ()) + few


def _few(samples: int, needed: int) -> tuple[str, ...]:
    return (f"{samples:,} images instead of {needed:,}",)
