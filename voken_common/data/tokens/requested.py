"""The data set that the options of `voken encode` ask for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from voken_common.config.loading import ConfigError, merge, overridden, read_mapping, validate
from voken_common.config.preparation import names_data, preparation
from voken_common.config.schema.data import DataConfig
from voken_common.config.schema.tokenizer import Config


def data_config(options: argparse.Namespace, config: Config) -> DataConfig:
    """The `data` section to encode: the user's, prepared as the tokenizer's images were where nothing else is said.

    Of the checkpoint's own section only the preparation of images counts (`voken_common.config.preparation`).

    Raises:
        ConfigError: settings that cannot be, a split that there is not, or nothing that says where the images lie.
    """
    foreign = [override for override in options.overrides if not override.startswith("data.")]
    if foreign:
        raise ConfigError(f"--set {foreign[0]}: only settings of the data can be changed here, as data.KEY=VALUE")
    section, origin = preparation(config.data), "overrides"
    if options.data is not None:
        section, origin = (
            merge(section, _section(Path(options.data), options.split, config.model.is_video)),
            options.data,
        )
    short = {"image_size": options.image_size, "resize": options.resize}
    named = [f"data.{key}={value}" for key, value in short.items() if value is not None]
    mapping = overridden(config.model_dump(mode="json") | {"data": section}, [*options.overrides, *named])
    sources = {split: mapping["data"].pop(split, None) for split in ("train", "validation")}
    source = sources[options.split]
    if source is None:
        raise ConfigError(f"--split {options.split}: the data section names no {options.split} source")
    if not names_data(source) and set(mapping["data"]) <= set(DataConfig.model_fields):
        raise ConfigError(
            f"where are the images? The checkpoint was trained on a source of kind {source.get('kind')}, and what it "
            "says of places is not followed: name a folder of images, a list of files, or YAML with a data section, "
            "with --data"
        )
    if not config.model.is_video:
        # Neither a discriminator nor LPIPS will see these images: their least sides are none of encoding.
        mapping |= {"discriminator": {"kind": "blur"}, "perceptual": {"weights": "none"}}
    return validate(mapping | {"data": {**mapping["data"], "train": source}}, origin).data


def _section(path: Path, split: str, video: bool) -> dict[str, Any]:
    """Turn the argument of `--data` into a data section or a part of one."""
    if path.is_dir() and video:
        return {split: {"kind": "video_folder", "path": str(path), "exclude": []}}
    if path.is_dir():
        return {split: {"kind": "image_folder", "path": str(path), "exclude": []}}
    if path.suffix not in (".yaml", ".yml"):
        return {split: {"kind": "list_file", "path": str(path), "root": None}}
    mapping = read_mapping(path)
    section = mapping.get("data", mapping)
    if not isinstance(section, dict):
        raise ConfigError(f"{path}: data is {type(section).__name__}, expected a mapping with train and validation")
    return section


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
