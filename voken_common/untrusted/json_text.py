"""JSON from files of others: bounded in depth, numbers and repetition, and nothing that JSON does not know."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

DEEPEST = 64
"""Lists and objects within each other."""
LONGEST_NUMBER = 400
"""Digits; Python takes quadratic time to read a number. A 64-bit float written out in full has fewer."""


_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', re.DOTALL)


class JSONTextError(ValueError):
    """Text that is no JSON, or more than its reader takes."""


def loads(text: str | bytes, *, non_finite: bool = False) -> Any:
    """Read JSON.

    Objects and lists may be nested `DEEPEST` deep, numbers have `LONGEST_NUMBER` characters; a key may come once per
    object; NaN and Infinity are refused, which `json` reads though JSON has no such numbers.

    Args:
        text: of the file; bytes are UTF-8.
        non_finite: let NaN and Infinity pass, which `json` writes for metrics; their reader checks what must be finite.

    Raises:
        ValueError: it is not such text; the message says why.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        _require_shallow(text)
        return json.loads(
            text,
            parse_int=_integer,
            parse_float=_real,
            parse_constant=float if non_finite else _refuse,
            object_pairs_hook=_once_each,
        )
    except (JSONTextError, json.JSONDecodeError):
        raise
    except (ValueError, RecursionError) as error:
        raise JSONTextError(str(error) or type(error).__name__) from error


def _require_shallow(text: str) -> None:
    """Raise before a recursive reader meets what it cannot take. Brackets within strings do not count."""
    if text.count("[") + text.count("{") <= DEEPEST:
        return
    depth = position = 0
    while match := _TOKENS.search(text, position):
        position = match.end()
        found = match.group()
        if found in "[{":
            depth += 1
            if depth > DEEPEST:
                raise JSONTextError(f"lists or objects nested more than {DEEPEST} deep")
        elif found in "]}":
            depth -= 1


def _integer(digits: str) -> int:
    _require_short(digits)
    return int(digits)


def _real(digits: str) -> float:
    _require_short(digits)
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise JSONTextError(f"{digits[:40]} is beyond the numbers that a computer holds")
    return value


def _require_short(digits: str) -> None:
    if len(digits) > LONGEST_NUMBER:
        raise JSONTextError(f"a number of {len(digits)} characters; expected at most {LONGEST_NUMBER}")


def _refuse(name: str) -> NoReturn:
    raise JSONTextError(f"{name} is no number")


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise JSONTextError(f"the key {key[:80]!r} comes twice")
            seen.add(key)
    return found
