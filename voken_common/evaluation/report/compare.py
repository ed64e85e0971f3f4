"""Two reports side by side: a table, a plot, and what was measured differently."""

from __future__ import annotations

from html import escape as quoted
from pathlib import Path
from typing import NamedTuple

from voken_common.atomic_write import replacing
from voken_common.evaluation.report.html import document, table
from voken_common.evaluation.report.model import LABELS, Measure, Report, shown
from voken_common.evaluation.report.text import markdown_table, print_table
from voken_common.untrusted.text import escape

_COLOURS = ("#2f6fab", "#d1722b")
# They describe the run and not the numbers.
_NOT_A_CONVENTION = ("checkpoint", "weights", "versions")


class Comparison(NamedTuple):
    """One metric in two reports.

    Attributes:
        first, second: of the two.
        verdict: which is better, or that their intervals overlap.
    """

    first: Measure
    second: Measure
    verdict: str


def compare(first: Report, second: Report) -> list[Comparison]:
    """Metrics that both have."""
    others = {measure.key: measure for measure in second.measures}
    return [Comparison(m, others[m.key], _verdict(m, others[m.key])) for m in first.measures if m.key in others]


def different_conventions(first: Report, second: Report) -> list[str]:
    """List the conventions that differ, in words; numbers then compare the conventions too."""
    names = [n for n in dict.fromkeys([*first.conventions, *second.conventions]) if n not in _NOT_A_CONVENTION]
    pairs = [
        (name, first.conventions.get(name, "not said"), second.conventions.get(name, "not said")) for name in names
    ]
    return [f"{name}: {a} | {b}" for name, a, b in pairs if a != b]


def headings(first: Report, second: Report) -> tuple[str, ...]:
    """Cell of the table."""
    a, b = first.title, second.title
    return ("Metric", a, b if a != b else f"{b} (second)", "Difference", "Verdict")


def comparison_rows(found: list[Comparison]) -> list[tuple[str, ...]]:
    """Cell of the table."""
    return [
        (
            LABELS[c.first.key].title,
            shown(c.first.key, c.first.value),
            shown(c.second.key, c.second.value),
            shown(c.first.key, c.second.value - c.first.value, signed=True),
            c.verdict,
        )
        for c in found
    ]


def plot(found: list[Comparison], titles: tuple[str, str]) -> str:
    """Pairs of bars as SVG, each pair scaled to its larger value, with the bootstrap intervals where there are any."""
    left, width, row = 280, 560, 46
    height = row * len(found) + 40
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 130} {height}" role="img">']
    parts.append(f'<rect width="{left + width + 130}" height="{height}" fill="#fff"/>')
    style = 'font-family="system-ui, sans-serif" font-size="13" fill="#1f2328"'
    for number, title in enumerate(titles):
        x = 10 + number * (left + width) // 2
        parts.append(f'<rect x="{x}" y="10" width="12" height="12" fill="{_COLOURS[number]}"/>')
        parts.append(f'<text x="{x + 18}" y="21" {style}>{_text(title[:60])}</text>')
    for index, comparison in enumerate(found):
        top = 36 + index * row
        largest = max(abs(comparison.first.value), abs(comparison.second.value)) or 1.0
        label = LABELS[comparison.first.key].title
        parts.append(f'<text x="{left - 10}" y="{top + 20}" text-anchor="end" {style}>{_text(label)}</text>')
        for number, measure in enumerate((comparison.first, comparison.second)):
            y, length = top + 16 * number, abs(measure.value) / largest * width
            parts.append(f'<rect x="{left}" y="{y}" width="{length:.1f}" height="13" fill="{_COLOURS[number]}"/>')
            if measure.interval is not None:
                low, high = (left + abs(end) / largest * width for end in measure.interval)
                line = f'y1="{y + 6.5}" y2="{y + 6.5}" stroke="#1f2328" stroke-width="2"'
                parts.append(f'<line x1="{low:.1f}" x2="{high:.1f}" {line}/>')
            text = _text(shown(measure.key, measure.value))
            parts.append(f'<text x="{left + length + 6:.1f}" y="{y + 11}" {style}>{text}</text>')
    return "\n".join([*parts, "</svg>"])


def write_comparison(first: Report, second: Report, folder: Path) -> None:
    """Print the table, and write `comparison.md`, `comparison.svg` and `comparison.html`."""
    found = compare(first, second)
    names, body = headings(first, second), comparison_rows(found)
    notes = [f"measured differently: {text}" for text in different_conventions(first, second)]
    print_table("Comparison", names, body)
    for note in notes:
        print(escape(f"note: {note}"))
    image = plot(found, (names[1], names[2]))
    text = "# Comparison\n\n" + markdown_table(names, body) + "\n\n" + "".join(f"- {escape(n)}\n" for n in notes)
    listed = "".join(f"<p>{_text(note)}</p>" for note in notes)
    whole = document("Comparison", f"<h1>Comparison</h1>{table(names, body)}{listed}<figure>{image}</figure>")
    for name, content in (("comparison.md", text), ("comparison.svg", image), ("comparison.html", whole)):
        with replacing(folder / name) as file:
            file.write(content.encode("utf-8", "backslashreplace"))


def _verdict(first: Measure, second: Measure) -> str:
    better = LABELS[first.key].better
    if better is None or first.value == second.value:
        return "equal" if first.value == second.value else ""
    (low, high), (other_low, other_high) = (m.interval or (m.value, m.value) for m in (first, second))
    if low <= other_high and other_low <= high:
        return "intervals overlap"
    return "second is better" if (second.value < first.value) == (better == "lower") else "first is better"


def _text(text: str) -> str:
    return quoted(escape(text), quote=True)
