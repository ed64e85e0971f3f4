"""Write the generated part of docs/configuration.md: every key of every section, from the schemas."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from voken_common.atomic_write import replacing
from voken_common.config.reference import markdown

PAGE = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"
BEGIN, END = "<!-- reference -->\n", "<!-- /reference -->"


def updated(page: str) -> str:
    """The page with its generated part as the schemas say now."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + "\n" + markdown() + "\n" + END + rest.split(END)[1]


def main() -> int:
    page = PAGE.read_text(encoding="utf-8")
    with replacing(PAGE) as file:
        file.write(updated(page).encode())
    print(f"{PAGE.name} written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
