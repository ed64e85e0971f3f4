"""The origin of every value of a configuration: the file that sets it, an override, or the default."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from voken_common.config.loading import load_any_config, parse_override, read_layers

DEFAULT = "default"
OVERRIDE = "--set"


def annotated_yaml(path: str | Path, overrides: Iterable[str] = ()) -> str:
    """Write a configuration as a run uses it, as YAML with the origin of every value in a comment.

    Args:
        path: YAML file.
        overrides: `a.b=value` strings.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    overrides = list(overrides)
    config = load_any_config(path, overrides)
    where: dict[tuple[str, ...], str] = {}
    for file, layer in read_layers(Path(path)):
        _note(layer, (), file.name, where)
    for override in overrides:
        key, value = parse_override(override)
        _note(value, tuple(key), OVERRIDE, where)
    rows = list(_rows(config.model_dump(mode="json"), (), where))
    width = min(max(len(text) for text, _ in rows), 60)
    return "".join(f"{text:{width}}  # {origin}\n" if origin else f"{text}\n" for text, origin in rows)


def _note(value: Any, key: tuple[str, ...], origin: str, where: dict[tuple[str, ...], str]) -> None:
    """Remember the origin of every value below a key; a later layer overwrites an earlier one."""
    if isinstance(value, Mapping) and value:
        for name, below in value.items():
            _note(below, (*key, str(name)), origin, where)
    else:
        where[key] = origin


def _rows(value: Mapping[str, Any], key: tuple[str, ...], where: Mapping[tuple[str, ...], str]) -> Any:
    """Yield (line of YAML, origin or empty for a section)."""
    for name, below in value.items():
        indent = "  " * len(key)
        if isinstance(below, Mapping) and below:
            yield f"{indent}{name}:", ""
            yield from _rows(below, (*key, name), where)
        else:
            text = yaml.safe_dump(below, default_flow_style=True, allow_unicode=True, width=10**6).strip()
            yield f"{indent}{name}: {text.removesuffix('...').strip()}", where.get((*key, name), DEFAULT)
