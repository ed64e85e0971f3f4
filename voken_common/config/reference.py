"""Reference of every setting, read off the schemas: key, type, default, meaning."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel

from voken_common.config.schema.generator import GeneratorConfig
from voken_common.config.schema.tokenizer import Config
from voken_common.errors import UserError

ROOTS: dict[str, type[BaseModel]] = {"tokenizer": Config, "generator": GeneratorConfig}
"""The configurations, by their `kind`."""


class Setting(NamedTuple):
    """One key of a configuration.

    Attributes:
        key: dotted path, such as `quantizer.temperature`.
        variant: for a section with several kinds, the `kind` that has this key; else empty.
        type: allowed values, in words.
        default: as YAML writes it; None where the key must be set.
        meaning: its description; empty where the name says it all.
    """

    key: str
    variant: str
    type: str
    default: str | None
    meaning: str


class Section(NamedTuple):
    """A mapping of settings: its dotted path, the `kind` that it describes if there are several, and its settings."""

    key: str
    variant: str
    meaning: str
    settings: tuple[Setting, ...]


def sections(kind: str) -> list[Section]:
    """List the sections of the configuration of a `kind` (tokenizer or generator), in the order of the schema."""
    schema = ROOTS[kind].model_json_schema(mode="validation")
    return list(_sections(schema, schema.get("$defs", {}), "", ""))


def find_settings(key: str) -> list[tuple[str, Setting]]:
    """Find a setting by its dotted key, or by the last part of it, as (kind of configuration, setting) pairs.

    Raises:
        UserError: no configuration has such a key; the message names the nearest ones.
    """
    every = [(kind, setting) for kind in ROOTS for section in sections(kind) for setting in section.settings]
    found = [pair for pair in every if pair[1].key == key]
    found = found or [pair for pair in every if pair[1].key.rsplit(".", 1)[-1] == key]
    if not found:
        names = {setting.key: None for _, setting in every} | {s.key.rsplit(".", 1)[-1]: None for _, s in every}
        near = difflib.get_close_matches(key, names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "`voken config list` prints all keys"
        raise UserError(f"no configuration has a key {key!r}; {hint}")
    return found


def describe(kind: str, setting: Setting) -> str:
    """Format one setting for a terminal."""
    where = f"of a {kind}" + (
        f" with {setting.key.rpartition('.')[0]}.kind: {setting.variant}" if setting.variant else ""
    )
    default = "must be set" if setting.default is None else f"default {setting.default}"
    lines = [f"{setting.key}  ({where})", f"  {setting.type}; {default}"]
    if setting.meaning:
        lines.append(f"  {setting.meaning}")
    return "\n".join(lines)


def markdown() -> str:
    """Write the reference as Markdown tables, one per section; a section that stands twice is written once."""
    parts, seen = [], dict[tuple[Any, ...], str]()
    for kind in ROOTS:
        parts.append(f"### kind: {kind}\n")
        for section in sections(kind):
            title = f"`{section.key}`" if section.key else "top level"
            title += f", kind `{section.variant}`" if section.variant else ""
            parts.append(f"#### {kind}: {title}\n")
            same = seen.setdefault(_content(section), f"{kind}: {title}")
            if same != f"{kind}: {title}":
                parts.append(f"The same keys as in {same}.\n")
                continue
            if section.meaning:
                parts.append(f"{section.meaning}\n")
            rows = ["| key | values | default | meaning |", "|---|---|---|---|"]
            rows += [_row(setting) for setting in section.settings]
            parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


def _content(section: Section) -> tuple[Any, ...]:
    """Return all that a section's table shows, apart from the path of the section."""
    settings = [(s.key.rpartition(".")[2], s.type, s.default, s.meaning) for s in section.settings]
    return (section.key if not section.key else "", section.variant, section.meaning, *settings)


def _row(setting: Setting) -> str:
    default = "(must be set)" if setting.default is None else f"`{setting.default}`"
    cells = [f"`{setting.key}`", setting.type, default, setting.meaning]
    cells[0] = f"`{setting.key.rpartition('.')[2]}`"
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _sections(schema: Mapping[str, Any], defs: Mapping[str, Any], path: str, variant: str) -> Iterator[Section]:
    required, below = set(schema.get("required", ())), []
    settings = []
    for name, field in schema.get("properties", {}).items():
        key = f"{path}.{name}" if path else name
        inner = _objects(field, defs)
        if inner:
            below += [(key, value, len(inner) > 1) for value in inner]
            continue
        meaning = " ".join(str(field.get("description", "")).split())
        default = None if name in required else _default(field)
        settings.append(Setting(key, variant, _type(field, defs), default, meaning))
    yield Section(path, variant, " ".join(str(schema.get("description", "")).split()), tuple(settings))
    for key, value, several in below:
        kind = value.get("properties", {}).get("kind", {})
        yield from _sections(value, defs, key, str(kind.get("const", kind.get("default", ""))) if several else "")


def _default(field: Mapping[str, Any]) -> str:
    if "default" not in field:
        return "follows from other settings"
    return json.dumps(field["default"], ensure_ascii=False)


def _objects(field: Mapping[str, Any], defs: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the sections that a field may hold; empty for a plain value."""
    if "$ref" in field:
        target = defs[field["$ref"].rsplit("/", 1)[-1]]
        return [target] if target.get("type") == "object" else _objects(target, defs)
    choices = [*field.get("anyOf", ()), *field.get("oneOf", ()), *field.get("allOf", ())]
    if "items" in field and isinstance(field["items"], Mapping):
        choices.append(field["items"])
    return [found for choice in choices for found in _objects(choice, defs)]


def _type(field: Mapping[str, Any], defs: Mapping[str, Any]) -> str:
    """Say in words which values a field allows."""
    if "$ref" in field:
        return _type(defs[field["$ref"].rsplit("/", 1)[-1]], defs)
    if "const" in field:
        return json.dumps(field["const"])
    if "enum" in field:
        return " or ".join(json.dumps(value) for value in field["enum"])
    for union in ("anyOf", "oneOf"):
        if union in field:
            return " or ".join(dict.fromkeys(_type(choice, defs) for choice in field[union]))
    kind = field.get("type", "anything")
    if kind == "array":
        parts = field.get("prefixItems")
        if parts:
            return "list of " + ", ".join(_type(part, defs) for part in parts)
        items = field.get("items", {})
        return f"list of {_type(items, defs)}" if items else "list"
    words = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}
    bounds = [
        f"{symbol} {field[name]}"
        for name, symbol in (("exclusiveMinimum", ">"), ("minimum", ">="), ("exclusiveMaximum", "<"), ("maximum", "<="))
        if name in field
    ]
    return " ".join([words.get(kind, kind), ", ".join(bounds)]).strip()
