"""A finished report to its three files and the terminal."""

from __future__ import annotations

from pathlib import Path

from voken_common.atomic_write import replacing
from voken_common.evaluation.report.html import page
from voken_common.evaluation.report.model import Report, write_json
from voken_common.evaluation.report.text import markdown, print_report


def write_report(report: Report, folder: Path) -> None:
    """Write `report.md`, `report.html` and `report.json`, the last one at the end, and print the table."""
    for name, text in (("report.md", markdown(report)), ("report.html", page(report, folder))):
        with replacing(folder / name) as file:
            file.write(text.encode("utf-8", "backslashreplace"))
    write_json(folder / "report.json", report)
    print_report(report)
