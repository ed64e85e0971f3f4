"""The published models as tables: for `voken models`, and in README and docs between `BEGIN` and `END`.

`python -m voken_common.published.table FILE...` writes them anew into Markdown files; a test compares.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from voken_common.published.entry import Metric, PublishedModel
from voken_common.published.models import MODELS

BEGIN = "<!-- published models: python -m voken_common.published.table writes this -->"
END = "<!-- end of published models -->"
_IMAGENET = "ImageNet 256x256"
TOKENIZER_HEAD = ("model", "codes", "dim", "down", "params (M)", "rFID", "PSNR", "on the hub")
GENERATOR_HEAD = ("model", "codes", "params (M)", "gFID", "IS", "tokenizer", "on the hub")


def tokenizer_rows(models: Sequence[PublishedModel] = MODELS) -> list[tuple[str, ...]]:
    """A row per tokenizer, of `TOKENIZER_HEAD`."""
    return [
        (
            model.name,
            f"{model.codebook_size:,}",
            str(model.dimension),
            "x".join(map(str, model.downsampling or ())),
            f"{model.parameters:.1f}",
            _shown(model, "rFID") or _shown(model, "rFVD"),
            _shown(model, "PSNR"),
            _place(model),
        )
        for model in models
        if model.family != "generator"
    ]


def generator_rows(models: Sequence[PublishedModel] = MODELS) -> list[tuple[str, ...]]:
    """A row per generator, of `GENERATOR_HEAD`."""
    return [
        (
            model.name,
            " x ".join(f"{codes:,}" for codes in model.codes),
            f"{model.parameters:.1f}",
            _shown(model, "gFID"),
            _shown(model, "IS"),
            str(model.tokenizer),
            _place(model),
        )
        for model in models
        if model.family == "generator"
    ]


def text() -> str:
    """Both tables for a terminal."""
    return "\n\n".join(
        _columns([head, *rows])
        for head, rows in ((TOKENIZER_HEAD, tokenizer_rows()), (GENERATOR_HEAD, generator_rows()))
    )


def markdown() -> str:
    """Both tables, and what their figures are of, in Markdown between the two marks."""
    note = (
        f"rFID and PSNR are what the authors report on {_IMAGENET}, unless the cell says otherwise (rFVD for videos); "
        "a dash: nothing is reported. `voken models` prints this table."
    )
    parts = [
        BEGIN,
        _markdown(TOKENIZER_HEAD, tokenizer_rows()),
        "",
        _markdown(GENERATOR_HEAD, generator_rows()),
        "",
        note,
        END,
    ]
    return "\n".join(parts)


def replaced(document: str) -> str:
    """A Markdown document with the tables as they are now.

    Raises:
        ValueError: it has no marks.
    """
    before, mark, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"found no {BEGIN} and {END}")
    return before + markdown() + after


def _shown(model: PublishedModel, metric: Metric) -> str:
    """The figure on ImageNet at 256x256, else the first there is, and on what."""
    found = [figure for figure in model.figures if figure.metric == metric]
    chosen = next((figure for figure in found if figure.on == _IMAGENET), found[0] if found else None)
    if chosen is None:
        return "" if metric in ("rFID",) and model.family == "video tokenizer" else "-"
    value = f"{chosen.value:.2f}"
    return value if chosen.on == _IMAGENET else f"{value} ({chosen.on})"


def _place(model: PublishedModel) -> str:
    alone = sum(other.repository == model.repository for other in MODELS) == 1
    return model.repository if alone else f"{model.repository}:{model.file}"


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([f"`{row[0]}`", *row[1:]] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(files: Sequence[str]) -> int:
    """Write the tables anew into Markdown files."""
    for name in files:
        path = Path(name)
        path.write_text(replaced(path.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
