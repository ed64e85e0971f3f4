"""A report as data: what was measured, how, and beside which published figure; `report.json` is this alone."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from voken_common.atomic_write import replacing
from voken_common.errors import UserError

FORMAT = "voken-evaluation"
LAYOUT = 1


@dataclass(frozen=True)
class Label:
    """Format of a metric.

    Attributes:
        title: for people.
        digits: after the point.
        better: which way it improves; None where neither is better.
        unit: after the value.
    """

    title: str
    digits: int
    better: str | None
    unit: str = ""


LABELS: dict[str, Label] = {
    "rfid": Label("rFID", 3, "lower"),
    "rfid_infinity": Label("rFID, extrapolated to infinitely many", 3, "lower"),
    "rfvd": Label("rFVD", 2, "lower"),
    "fid": Label("FID", 3, "lower"),
    "fid_infinity": Label("FID, extrapolated to infinitely many", 3, "lower"),
    "sfid": Label("sFID", 3, "lower"),
    "inception_score": Label("Inception Score", 2, "higher"),
    "inception_score_std": Label("Inception Score, deviation over splits", 2, None),
    "precision": Label("Precision", 4, "higher"),
    "recall": Label("Recall", 4, "higher"),
    "psnr": Label("PSNR", 3, "higher", "dB"),
    "ssim": Label("SSIM", 4, "higher"),
    "lpips_alex": Label("LPIPS (AlexNet)", 4, "lower"),
    "lpips_vgg": Label("LPIPS (VGG16)", 4, "lower"),
    "codebook_usage": Label("Codebook usage", 4, "higher"),
    "codebook_perplexity": Label("Codebook perplexity", 1, "higher"),
    "bits_per_pixel": Label("Bits per pixel (ids)", 5, "lower"),
    "entropy_bits_per_pixel": Label("Bits per pixel (entropy of ids)", 5, "lower"),
}


@dataclass(frozen=True)
class Measure:
    """One number of a report.

    Attributes:
        key: of `LABELS`.
        value: finite.
        interval: ends of the 95 % bootstrap interval of the mean.
        published: the figure that was published, and on what.
        published_on: data set and size of that figure.
        not_comparable: why the two cannot be compared; empty where they can.
        note: anything else to be said.
    """

    key: str
    value: float
    interval: tuple[float, float] | None = None
    published: float | None = None
    published_on: str = ""
    not_comparable: tuple[str, ...] = ()
    note: str = ""

    @property
    def difference(self) -> float | None:
        """Ours minus the published one."""
        return None if self.published is None else self.value - self.published


@dataclass(frozen=True)
class Picture:
    """A picture beside the report.

    Attributes:
        file: relative to the report's folder.
        caption: a line.
    """

    file: str
    caption: str


@dataclass(frozen=True)
class Report:
    """Everything an evaluation says.

    Attributes:
        kind: tokenizer, samples or video.
        title: what was evaluated.
        measures: in the order in which they are shown.
        conventions: name to value of everything that decides the numbers.
        speed: name to number, such as images per second.
        notes: sentences.
        pictures: beside it.
    """

    kind: str
    title: str
    measures: tuple[Measure, ...]
    conventions: Mapping[str, str]
    speed: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()

    @property
    def convention_line(self) -> str:
        """All conventions in one line."""
        return "; ".join(f"{name}: {value}" for name, value in self.conventions.items())

    def values(self) -> dict[str, float]:
        """Metric to value."""
        return {measure.key: measure.value for measure in self.measures}


def shown(key: str, value: float | None, *, signed: bool = False) -> str:
    """A value with the digits of its metric."""
    if value is None:
        return ""
    label = LABELS[key]
    return f"{value:{'+' if signed else ''},.{label.digits}f}{f' {label.unit}' if label.unit else ''}"


def write_json(path: str | Path, report: Report) -> None:
    """Write a report; numbers that are not finite are refused, since JSON has none."""
    record = {
        "format": FORMAT,
        "layout": LAYOUT,
        **dataclasses.asdict(report),
        "convention_line": report.convention_line,
    }
    text = json.dumps(record, indent=1, allow_nan=False, ensure_ascii=False)
    with replacing(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def read_json(path: str | Path) -> Report:
    """Read what `write_json` wrote.

    Raises:
        UserError: no such file, or not a report.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read report {path}: {error}") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); expected a report.json of voken evaluate") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise UserError(f"{path} is not a report of voken evaluate; expected its report.json")
    if record.get("layout") != LAYOUT:
        raise UserError(
            f"{path} has layout {record.get('layout')}, expected {LAYOUT}: it is from another version of voken"
        )
    try:
        measures = tuple(_measure(entry) for entry in record["measures"])
        pictures = tuple(Picture(**entry) for entry in record["pictures"])
        return Report(
            record["kind"],
            record["title"],
            measures,
            dict(record["conventions"]),
            dict(record["speed"]),
            tuple(record["notes"]),
            pictures,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is a damaged report ({error})") from error


def _measure(entry: Mapping[str, Any]) -> Measure:
    fields = {**entry, "not_comparable": tuple(entry["not_comparable"])}
    if fields["interval"] is not None:
        low, high = fields["interval"]
        fields["interval"] = (float(low), float(high))
    measure = Measure(**fields)
    if measure.key not in LABELS or not math.isfinite(measure.value):
        raise ValueError(f"measure {measure.key!r} = {measure.value}")
    return measure
