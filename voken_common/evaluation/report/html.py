"""A report as one HTML file that needs nothing else: style and pictures are inside, and nothing is fetched or run."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape as quoted
from pathlib import Path

from voken_common.evaluation.report.model import Report
from voken_common.evaluation.report.text import HEADINGS, rows
from voken_common.untrusted.text import escape

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --faint: #656d76; --line: #d0d7de; --paper: #fff; --band: #f6f8fa;
  --warn: #9a6700; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --faint: #8d96a0; --line: #3d444d; --paper: #0d1117;
  --band: #151b23; --warn: #d29922; } }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .7rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th { background: var(--band); font-weight: 600; white-space: nowrap; }
th:first-child, td:first-child, th:last-child, td:last-child { text-align: left; }
td:last-child { color: var(--warn); } .conventions { color: var(--faint); font-size: .9rem; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; font-size: .9rem; }
dt { color: var(--faint); } dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 1rem 0; } img, svg { max-width: 100%; height: auto; border: 1px solid var(--line); background: #fff; }
figcaption { color: var(--faint); font-size: .9rem; }
"""


def page(report: Report, folder: Path) -> str:
    """The file's text; pictures are read from `folder`."""
    body = [f"<h1>{_text(report.title)}</h1>", f'<p class="conventions">{_text(report.convention_line)}</p>']
    body += ["<h2>Measures</h2>", table(HEADINGS, rows(report))]
    body += [f"<p>{_text(note)}</p>" for note in report.notes]
    for picture in report.pictures:
        data = base64.b64encode((folder / picture.file).read_bytes()).decode()
        caption = _text(picture.caption)
        image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
        body.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")
    body += ["<h2>Conventions</h2>", _list(report.conventions)]
    if report.speed:
        body += ["<h2>Speed</h2>", _list({name: f"{value:,.2f}" for name, value in report.speed.items()})]
    return document(report.title, "\n".join(body))


def document(title: str, body: str) -> str:
    """A page around a body."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{_text(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def table(headings: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table; empty columns are left out."""
    kept = [i for i in range(len(headings)) if any(row[i] for row in body)]
    head = "".join(f"<th>{_text(headings[i])}</th>" for i in kept)
    lines = ["<tr>" + "".join(f"<td>{_text(row[i])}</td>" for i in kept) + "</tr>" for row in body]
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _list(entries: object) -> str:
    assert hasattr(entries, "items")
    return "<dl>" + "".join(f"<dt>{_text(k)}</dt><dd>{_text(v)}</dd>" for k, v in entries.items()) + "</dl>"


def _text(text: str) -> str:
    """Text from files as text: nothing in it is markup."""
    return quoted(escape(str(text)), quote=True)
