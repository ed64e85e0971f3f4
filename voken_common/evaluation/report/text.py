"""Reports in the terminal and as Markdown: the same rows in both."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from typing import Any

from voken_common.evaluation.report.model import LABELS, Measure, Report, shown
from voken_common.untrusted.text import escape

HEADINGS = ("Metric", "Value", "95 % interval", "Published", "Difference", "Remarks")


def rows(report: Report) -> list[tuple[str, ...]]:
    """One row per measure, under `HEADINGS`."""
    return [_row(measure) for measure in report.measures]


def markdown(report: Report) -> str:
    """`report.md`: table, conventions in a line and as a list, notes, pictures."""
    lines = [f"# {_md(report.title)}", "", _table(HEADINGS, rows(report)), "", f"*{_md(report.convention_line)}*", ""]
    if report.speed:
        lines += [", ".join(f"{name}: {value:,.2f}" for name, value in report.speed.items()), ""]
    lines += [f"- {_md(note)}" for note in report.notes]
    for picture in report.pictures:
        lines += ["", f"![{_md(picture.caption)}]({picture.file})", "", _md(picture.caption)]
    return "\n".join(lines) + "\n"


def markdown_table(headings: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return _table(headings, body)


def print_report(report: Report) -> None:
    """A table in the terminal, drawn by rich where it is installed and the output is a terminal."""
    print_table(report.title, HEADINGS, rows(report))
    print(escape(report.convention_line))
    for note in report.notes:
        print(escape(f"note: {note}"))


def print_table(title: str, headings: Sequence[str], body: Sequence[Sequence[str]]) -> None:
    """Empty columns are left out."""
    kept = [i for i in range(len(headings)) if any(row[i] for row in body)]
    headings, body = [headings[i] for i in kept], [[escape(row[i]) for i in kept] for row in body]
    if importlib.util.find_spec("rich") is not None and sys.stdout.isatty():
        _rich(escape(title), headings, body)
        return
    widths = [max(len(row[i]) for row in (headings, *body)) for i in range(len(headings))]
    print(escape(title))
    for row in (headings, *body):
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _rich(title: str, headings: Sequence[str], body: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table: Any = Table(title=Text(title), title_justify="left")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if 0 < number < len(headings) - 1 else "left", overflow="fold")
    for row in body:
        # As text, never as markup: names come from files.
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def _row(measure: Measure) -> tuple[str, ...]:
    interval = ""
    if measure.interval is not None:
        digits = LABELS[measure.key].digits
        interval = f"{measure.interval[0]:,.{digits}f} to {measure.interval[1]:,.{digits}f}"
    remarks = []
    if measure.not_comparable and measure.published is not None:
        remarks.append(f"not comparable: {', '.join(measure.not_comparable)}")
    if measure.note:
        remarks.append(measure.note)
    published = shown(measure.key, measure.published)
    return (
        LABELS[measure.key].title,
        shown(measure.key, measure.value),
        interval,
        f"{published} ({measure.published_on})" if published and measure.published_on else published,
        shown(measure.key, measure.difference, signed=True),
        "; ".join(remarks),
    )


def _table(headings: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    lines += ["| " + " | ".join(_md(cell) for cell in row) + " |" for row in body]
    return "\n".join(lines)


def _md(text: str) -> str:
    """Text from files as it is: no character of it starts a table cell, a link, or HTML."""
    for character in "\\|*_`[]<>":
        text = text.replace(character, f"\\{character}")
    return escape(text)
