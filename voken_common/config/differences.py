"""In what two sets of settings differ, key by key: two whole sections side by side are nothing to compare by eye."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MISSING = "nothing"


def changed_keys(before: Any, now: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ: what stood there before (`MISSING`: nothing), and what stands there now."""
    if not (isinstance(before, Mapping) and isinstance(now, Mapping)):
        return {} if before == now else {prefix or "the whole": (before, now)}
    found: dict[str, tuple[Any, Any]] = {}
    for key in dict.fromkeys([*before, *now]):
        name = f"{prefix}.{key}" if prefix else str(key)
        found |= changed_keys(before.get(key, MISSING), now.get(key, MISSING), name)
    return found


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line per key that differs: `a.b: found 1, this run has 2`."""
    return [
        f"{key}: found {_short(old)}, this run has {_short(new)}"
        for key, (old, new) in changed_keys(before, now).items()
    ]


def _short(value: Any, length: int = 120) -> str:
    text = str(value)
    return text if len(text) <= length else f"{text[:length]}..."
