"""Loading of configurations: YAML files, `base:` inheritance, `--set` overrides, and errors that help.

A file may name a `base:` (a path relative to itself); its keys are laid over the base's, section by section. A section
whose `kind` differs from the base's replaces it whole. Overrides come last, as `path.to.key=value` with the value read
as YAML. The merged mapping is validated by the schema that its own `kind` names: `schema.tokenizer.Config` for a
tokenizer, which is the default, or `schema.generator.GeneratorConfig`. Everything wrong is reported at once.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from voken_common.config.renames import new_key, with_new_names
from voken_common.config.schema.generator import GeneratorConfig
from voken_common.config.schema.tokenizer import Config
from voken_common.errors import UserError
from voken_common.untrusted.files import read_text
from voken_common.untrusted.json_text import loads
from voken_common.untrusted.text import shown
from voken_common.untrusted.yaml_text import BoundedLoader
from voken_common.untrusted.yaml_text import load as load_yaml

AnyConfig = Config | GeneratorConfig
_KINDS: dict[str, type[Config] | type[GeneratorConfig]] = {"tokenizer": Config, "generator": GeneratorConfig}


_MOST_BASES = 16
_MOST_PROBLEMS = 50
"""That one message tells."""


class ConfigError(UserError):
    """A configuration that cannot be used; the message names every offending key."""


class _Loader(BoundedLoader):
    """YAML 1.2 floats: `1e-4` is a number, not a string."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read, inherit, override and validate the configuration file of a tokenizer.

    Args:
        path: YAML file.
        overrides: `a.b=value` strings; the value is YAML.

    Raises:
        ConfigError: unreadable file, unknown key, wrong type or impossible combination; or a generator's file.
    """
    return _tokenizer(load_any_config(path, overrides), str(path))


def load_any_config(path: str | Path, overrides: Iterable[str] = ()) -> AnyConfig:
    """As `load_config`, for whatever kind of run the file says."""
    mapping = read_mapping(Path(path))
    return validate_any(overridden(mapping, overrides), origin=str(path))


def read_mapping(path: Path) -> dict[str, Any]:
    """A YAML file with its bases merged in, as plain data."""
    merged: dict[str, Any] = {}
    for _, layer in read_layers(path):
        merged = merge(merged, layer)
    return merged


def read_layers(path: Path, seen: tuple[Path, ...] = ()) -> list[tuple[Path, dict[str, Any]]]:
    """Read a YAML file and its bases, the lowest base first, each as (file, plain data without `base`).

    Raises:
        ConfigError: a file that is missing or no mapping, or bases that run in a circle.
    """
    path = find_config(path).resolve()
    if len(seen) > _MOST_BASES:
        raise ConfigError(f"{seen[0]}: more than {_MOST_BASES} files, each the base of the one before")
    if path in seen:
        raise ConfigError("base: runs in a circle: " + " -> ".join(str(p) for p in (*seen, path)))
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=3)
        hint = f"; nearest in that folder: {', '.join(near)}" if near else ""
        raise ConfigError(f"no configuration file {path}{hint}")
    try:
        data = load_yaml(read_text(path), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds {type(data).__name__}, expected a mapping of sections")
    data = with_new_names(data, str(path))
    base = data.pop("base", None)
    if base is None:
        return [(path, data)]
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base is {shown(repr(base))}, expected the path of one YAML file")
    return [*read_layers(path.parent / base, (*seen, path)), (path, data)]


def find_config(path: Path) -> Path:
    """The file itself, or the configuration of voken that has this name, such as `quickstart_lfq`; else the path."""
    if path.exists() or path.parent != Path("."):
        return path
    package = Path(__file__).parents[1]
    # An installed package carries them inside; in the source tree they lie beside it.
    for folder in (Path("configs"), package / "configs", package.parent / "configs"):
        found = sorted(folder.rglob(f"{path.name.removesuffix('.yaml')}.yaml")) if folder.is_dir() else []
        if len(found) > 1:
            raise ConfigError(f"{path} is the name of several configurations, name one: {', '.join(map(str, found))}")
        if found:
            return found[0]
    return path


def merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Lay `top` over `base`, mappings key by key; a mapping of another `kind` replaces the whole section."""
    result = dict(base)
    for key, value in top.items():
        below = result.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping) and not _changes_kind(below, value):
            result[key] = merge(below, value)
        else:
            result[key] = value
    return result


def parse_override(text: str) -> tuple[list[str], Any]:
    """Split `a.b=value` into path and YAML value."""
    key, equals, value = text.partition("=")
    if not equals or not all(part for part in key.strip().split(".")):
        raise ConfigError(f"override {text!r} is not of the form path.to.key=value")
    try:
        return key.strip().split("."), load_yaml(value, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {text!r}: the value is not valid YAML: {error}") from error


def validate(mapping: Mapping[str, Any], origin: str) -> Config:
    """Turn plain data into a tokenizer's Config; `origin` (a path) opens the error message."""
    return _tokenizer(validate_any(mapping, origin), origin)


def validate_any(mapping: Mapping[str, Any], origin: str) -> AnyConfig:
    """Turn plain data into the configuration that its `kind` names."""
    _require_plain(mapping, "", origin)
    mapping = with_new_names(mapping, origin)
    root = _root(mapping)
    try:
        return root.model_validate_json(json.dumps(mapping), strict=True)
    except (ArithmeticError, RecursionError) as error:
        raise ConfigError(f"{origin}: its numbers cannot be computed with ({type(error).__name__}: {error})") from error
    except ValidationError as error:
        # A default that follows from another setting cannot be found where that setting is wrong, which is told.
        details = [detail for detail in error.errors() if detail["type"] != "default_factory_not_called"]
        lines = [_describe(detail, mapping, root) for detail in details[:_MOST_PROBLEMS]]
        lines += [f"and {len(details) - _MOST_PROBLEMS} more"] * (len(details) > _MOST_PROBLEMS)
        raise ConfigError(
            f"{origin}: {len(details)} problem(s)\n" + "\n".join(f"  {line}" for line in lines)
        ) from error


def _root(mapping: Mapping[str, Any]) -> type[Config] | type[GeneratorConfig]:
    kind = mapping.get("kind", "tokenizer")
    return _KINDS.get(kind, Config) if isinstance(kind, str) else Config


def _tokenizer(config: AnyConfig, origin: str) -> Config:
    if not isinstance(config, Config):
        raise ConfigError(f"{origin}: found kind: {config.kind}, expected a tokenizer's configuration")
    return config


def overridden(mapping: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Plain data of a configuration with `a.b=value` overrides laid over it; values are checked by `validate`.

    Raises:
        ConfigError: an override of an unknown key.
    """
    for override in overrides:
        key, value = parse_override(override)
        key = new_key(mapping, key)
        _check_override(mapping, key, override)
        mapping = merge(mapping, _nest(key, value))
    return mapping


def to_yaml(config: AnyConfig) -> str:
    """The resolved configuration, every default written out; loads back to an equal Config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def from_json(text: str, origin: str) -> AnyConfig:
    """Read a resolved configuration back, for example from a checkpoint."""
    return validate_any(loads(text), origin)


def with_overrides(config: Config, overrides: Iterable[str]) -> Config:
    """A copy of a resolved configuration with overrides applied and checked."""
    return validate(overridden(config.model_dump(mode="json"), overrides), origin="overrides")


def _require_plain(value: Any, path: str, origin: str) -> None:
    """Raise ConfigError at a value that a configuration cannot hold, such as YAML's dates and not-a-number."""
    if isinstance(value, Mapping):
        for key, below in value.items():
            if not isinstance(key, str):
                raise ConfigError(
                    f"{origin}: key {shown(repr(key))} in {path or 'the whole'} is not a string: put it in quotes"
                )
            _require_plain(below, f"{path}.{key}" if path else key, origin)
    elif isinstance(value, list | tuple):
        for index, below in enumerate(value):
            _require_plain(below, f"{path}.{index}", origin)
    elif not isinstance(value, str | int | float | None) or (isinstance(value, float) and not math.isfinite(value)):
        raise ConfigError(
            f"{origin}: {path} = {shown(repr(value))} ({type(value).__name__}): expected a finite number, a string, "
            "true or false, null, a list or a mapping; text that YAML reads as something else needs quotes"
        )


def _changes_kind(below: Mapping[str, Any], value: Mapping[str, Any]) -> bool:
    return "kind" in value and value["kind"] != below.get("kind", value["kind"])


def _nest(key: list[str], value: Any) -> dict[str, Any]:
    for part in reversed(key):
        value = {part: value}
    return value


def _check_override(mapping: Mapping[str, Any], key: list[str], override: str) -> None:
    root = _root(mapping)
    section: type[BaseModel] | None = root
    for depth, part in enumerate(key):
        if section is None:
            raise ConfigError(f"override {override!r}: {'.'.join(key[:depth])} is a value, not a section")
        if part not in section.model_fields:
            raise ConfigError(f"override {override!r}: {_unknown(key[: depth + 1], section, root)}")
        section = _subsection(section, part, _lookup(mapping, key[: depth + 1]))


def _lookup(mapping: Any, path: Iterable[str | int]) -> Any:
    for part in path:
        if isinstance(mapping, Mapping) and part in mapping:
            mapping = mapping[part]
        elif isinstance(mapping, list) and isinstance(part, int) and part < len(mapping):
            mapping = mapping[part]
        else:
            return None
    return mapping


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """Section classes an annotation admits, through Annotated, unions, None and lists of sections."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _models_in(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType, tuple):
        return [model for part in typing.get_args(annotation) for model in _models_in(part)]
    return []


def _subsection(section: type[BaseModel], name: str, value: Any) -> type[BaseModel] | None:
    """The section class below `name`; where several are possible, the one of the value's `kind`."""
    candidates = _models_in(section.model_fields[name].annotation)
    if len(candidates) < 2:
        return candidates[0] if candidates else None
    default = section.model_fields[name].default
    kind = value.get("kind") if isinstance(value, Mapping) else getattr(default, "kind", None)
    by_kind = {model.model_fields["kind"].default: model for model in candidates}
    return by_kind.get(kind, candidates[0])


def _all_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        for model in _models_in(field.annotation):
            keys += _all_keys(model, f"{prefix}{name}.")
    return keys


def _unknown(path: list[str], section: type[BaseModel], root: type[BaseModel]) -> str:
    """`unknown key a.b` with the nearest key of that section, else the nearest of the whole configuration."""
    name, prefix = path[-1], path[:-1]
    near = [".".join([*prefix, key]) for key in _meant(name, list(section.model_fields))]
    if not near:
        everywhere = dict.fromkeys(_all_keys(root))
        near = [key for key in everywhere if key.rsplit(".", 1)[-1] == name]
        near = near or difflib.get_close_matches(".".join(path), list(everywhere), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "nothing near it is known;"
    return f"unknown key {'.'.join(path)}; {hint} allowed here: {', '.join(section.model_fields)}"


_ALIASES = {
    "lr": "learning_rate",
    "wd": "weight_decay",
    "bs": "batch_size",
    "eps": "epsilon",
    "n_embed": "codebook_size",
    "num_embeddings": "codebook_size",
    "embed_dim": "code_dim",
    "num_workers": "workers",
    "max_steps": "steps",
    "num_epochs": "epochs",
    "max_epochs": "epochs",
    "grad_clip": "gradient_clip",
    "ch": "channels",
    "ch_mult": "channel_multipliers",
    "num_res_blocks": "residual_blocks",
    "dtype": "compute_dtype",
    "resolution": "image_size",
}
"""Words of other code bases."""


def _meant(name: str, keys: list[str]) -> list[str]:
    """The key that a wrong name stands for: another word for it, its first letters, a part of it, or a slip."""
    if _ALIASES.get(name) in keys:
        return [_ALIASES[name]]
    if initials := [key for key in keys if "_" in key and "".join(word[0] for word in key.split("_")) == name]:
        return initials[:1]
    close = difflib.get_close_matches(name, keys, n=1)
    return close or [key for key in keys if len(name) > 3 and (name in key.split("_") or key in name.split("_"))][:1]


def _describe(detail: Any, mapping: Mapping[str, Any], root: type[BaseModel]) -> str:
    """One line for one pydantic error: key path, what was found, what is allowed, nearest key."""
    path: list[str | int] = []
    section: type[BaseModel] | None = root
    parent: type[BaseModel] | None = root
    for part in detail["loc"]:
        if section is not None and part not in section.model_fields and part in _kinds(section, mapping, path):
            continue  # the tag of a union that pydantic puts into the location
        parent = section
        path.append(part)
        if section is not None and part in section.model_fields:
            below = _subsection(section, part, _lookup(mapping, path))
            section = below
        elif detail["type"] != "extra_forbidden":
            section = None
    name = ".".join(str(part) for part in path) or "the whole"
    if detail["type"] == "extra_forbidden":
        return _unknown([str(part) for part in path], parent or root, root)
    if detail["type"] == "missing":
        return f"missing key {name}: it has no default and must be set"
    message = detail["msg"].removeprefix("Value error, ")
    found = _lookup(mapping, path)
    if isinstance(found, Mapping):
        return f"{name}: {message}"
    return f"{name} = {shown(repr(found))} ({type(found).__name__}): {message[0].lower()}{message[1:]}"


def _kinds(section: type[BaseModel], mapping: Mapping[str, Any], path: list[str | int]) -> set[str]:
    kind = section.model_fields.get("kind")
    value = _lookup(mapping, [*path, "kind"])
    return {v for v in (kind.default if kind else None, value) if isinstance(v, str)}
