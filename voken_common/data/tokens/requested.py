"""The data set that the options of `voken encode` ask for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from voken_common.config.data import DataConfig
from voken_common.config.loading import ConfigError, merge, read_mapping, validate, with_overrides
from voken_common.config.tokenizer import Config


def data_config(options: argparse.Namespace, config: Config) -> DataConfig:
    """The `data` section to encode: the tokenizer's own, with what the command line says laid over it.

    Raises:
        ConfigError: settings that cannot be, or a split that there is not.
    """
    if options.data is not None:
        config = _with_section(config, _section(Path(options.data), options.split), options.data)
    foreign = [override for override in options.overrides if not override.startswith("data.")]
    if foreign:
        raise ConfigError(f"--set {foreign[0]}: only settings of the data can be changed here, as data.KEY=VALUE")
    short = {"image_size": options.image_size, "resize": options.resize}
    named = [f"data.{key}={value}" for key, value in short.items() if value is not None]
    data = with_overrides(config, [*options.overrides, *named]).data
    if options.split == "train":
        return data
    if data.validation is None:
        raise ConfigError("--split validation: the data section names no validation source")
    return data.model_copy(update={"train": data.validation})


def _section(path: Path, split: str) -> dict[str, Any]:
    """What `--data` says, as (a part of) a data section."""
    if path.is_dir():
        return {split: {"kind": "image_folder", "path": str(path), "exclude": []}}
    if path.suffix not in (".yaml", ".yml"):
        return {split: {"kind": "list_file", "path": str(path), "root": None}}
    mapping = read_mapping(path)
    section = mapping.get("data", mapping)
    if not isinstance(section, dict):
        raise ConfigError(f"{path}: data is {type(section).__name__}, expected a mapping with train and validation")
    return section


def _with_section(config: Config, section: dict[str, Any], origin: str) -> Config:
    return validate(merge(config.model_dump(mode="json"), {"data": section}), origin)


def sub_token_bits(text: str | None) -> tuple[int, int] | None:
    """The value of `--sub-tokens`.

    Raises:
        ValueError: not two numbers.
    """
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"--sub-tokens {text}: expected the bits of the two sub-tokens, such as 6,12")
    return int(parts[0]), int(parts[1])
