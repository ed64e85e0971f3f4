"""Keys and values that had other names once: old files and checkpoints carry them, and they are still read.

A renamed key gets one row here, under its full path; each use of an old name is logged once with the new one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, MutableMapping
from typing import Any, NamedTuple

logger = logging.getLogger("voken")


class Renamed(NamedTuple):
    """A key that has another name now.

    Attributes:
        old, new: full paths of the key, in the same section.
        kind: the `kind` of the section that it concerns; None: any.
    """

    old: str
    new: str
    kind: str | None = None


KEYS = (
    Renamed("optimizer.accumulate", "optimizer.gradient_accumulation"),
    Renamed("quantizer.memory_budget_mb", "quantizer.memory_budget_mib"),
    Renamed("quantizer.codebook_weight", "quantizer.entropy_weight", kind="lfq"),
    Renamed("quantizer.quant_weight", "quantizer.quantizer_weight"),
)
VALUES: dict[str, dict[str, str]] = {"optimizer.schedule.kind": {"lin0": "linear"}}
_told: set[tuple[str, str]] = set()


def with_new_names(mapping: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Return plain data of a configuration with today's names in place of old ones.

    Args:
        mapping: as it was read; it is not changed. A key that stands there under both names is left for the schema to
            refuse.
        origin: what the message calls it, such as the file.
    """
    result = _copied(mapping)
    for old, new, kind in KEYS:
        section, name, renamed = _section(result, old), old.rpartition(".")[2], new.rpartition(".")[2]
        if section is None or name not in section or renamed in section:
            continue
        if kind is not None and section.get("kind", kind) != kind:
            continue
        for key in list(section):
            section[renamed if key == name else key] = section.pop(key)
        _tell(origin, old, new)
    for path, values in VALUES.items():
        section, name = _section(result, path), path.rpartition(".")[2]
        value = None if section is None else section.get(name)
        if section is not None and isinstance(value, str) and value in values:
            section[name] = values[value]
            _tell(origin, f"{path} {value}", f"{path} {values[value]}")
    return result


def new_key(mapping: Mapping[str, Any], path: list[str]) -> list[str]:
    """Return the path of a key under its new name, as `--set` gives it for a configuration."""
    for old, new, kind in KEYS:
        section = _section(_copied(mapping), old)
        if ".".join(path) == old and (kind is None or (section or {}).get("kind", kind) == kind):
            _tell("--set", old, new)
            return new.split(".")
    return path


def _copied(value: Any) -> Any:
    return {key: _copied(below) for key, below in value.items()} if isinstance(value, Mapping) else value


def _section(mapping: MutableMapping[str, Any], path: str) -> MutableMapping[str, Any] | None:
    found: Any = mapping
    for part in path.split(".")[:-1]:
        found = found.get(part) if isinstance(found, Mapping) else None
    return found if isinstance(found, MutableMapping) else None


def _tell(origin: str, old: str, new: str) -> None:
    if (origin, old) not in _told:
        _told.add((origin, old))
        logger.info("%s: %s is called %s now, and is still read", origin, old, new)
