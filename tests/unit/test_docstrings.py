"""Docstrings state or command: none begins as a question or as a fragment of the sentence before it."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FRAGMENT = re.compile(r"(What|Whether|Where|How|Which|When|Why|Of|As of|The same|Every how)\b")


def test_no_docstring_begins_as_a_question_or_a_fragment():
    found = []
    for folder in ("voken_common", "voken_jax", "voken_torch", "scripts"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    text = ast.get_docstring(node) or ""
                    if FRAGMENT.match(text):
                        line = getattr(node, "lineno", 1)
                        found.append(f"{path.relative_to(ROOT)}:{line}: {text.splitlines()[0]}")
    assert not found, "say what it does or is:\n" + "\n".join(found)
