"""The encode command of both frameworks: images into token shards, and shards back into images."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from voken_common.checkpoints.steps import Step, Weights
from voken_common.commands.options import add_no_verify
from voken_common.commands.reconstruct import step_of
from voken_common.config.data import DataConfig
from voken_common.config.loading import ConfigError, merge, read_mapping, validate, with_overrides
from voken_common.config.tokenizer import Config
from voken_common.data.tokens.decode import decode_dataset
from voken_common.data.tokens.encode import Encoding, EncodingTokenizer, encode_dataset
from voken_common.data.tokens.folder import overwrite
from voken_common.data.tokens.shards import TokenShardSource

Load = Callable[[str, Step, Weights | None, bool], EncodingTokenizer]
INTERRUPTED = 130


def build_parser(program: str, description: str | None, process: tuple[int, int] = (0, 1)) -> argparse.ArgumentParser:
    """The command line that both frameworks share; `process` is the default of --process-index and --process-count."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {program}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", help="of the tokenizer: a work directory, one step of it, or a .safetensors")
    parser.add_argument("--output", required=True, help="folder to write to")
    parser.add_argument(
        "--overwrite", action="store_true", help="remove the token shards that are in the folder, saying which, first"
    )
    parser.add_argument("--step", default="latest", help="of a work directory: latest, best or a number")
    parser.add_argument("--weights", choices=("ema", "raw"), help="default: the averages, if the checkpoint has them")
    add_no_verify(parser)
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="images per call of the network")
    parser.add_argument(
        "--data",
        metavar="FOLDER_OR_FILE",
        help="a folder of images, a list of files, or YAML with a data section; default: what the tokenizer was "
        "trained on",
    )
    parser.add_argument("--split", choices=("train", "validation"), default="train", help="which source of it")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="data.KEY=VALUE",
        dest="overrides",
        help="change a setting of the data",
    )
    parser.add_argument("--image-size", type=int, metavar="N", help="side of the square that is cut from each image")
    parser.add_argument("--resize", choices=("pil", "cv2", "none"), help="convention of the short-side resize")
    parser.add_argument(
        "--crops", type=int, default=1, metavar="N", help="views per image; all but the first at random"
    )
    parser.add_argument("--sub-tokens", metavar="A,B", help="bits of the two sub-tokens of an LFQ code, such as 6,12")
    parser.add_argument("--samples-per-shard", type=int, default=4096, metavar="N")
    parser.add_argument("--seed", type=int, default=0, help="of the random crops")
    parser.add_argument("--process-index", type=int, default=process[0], metavar="I", help="which of several processes")
    parser.add_argument("--process-count", type=int, default=process[1], metavar="P", help="that share the work")
    parser.add_argument("--decode", metavar="DIR", help="turn the token shards of DIR into PNG files instead")
    parser.add_argument("--max-images", type=int, metavar="N", help="with --decode: only the first ones")
    return parser


def run(options: argparse.Namespace, load: Load) -> int:
    """Run the command; exit status 0 done, 2 input that cannot be used, 130 interrupted.

    Args:
        options: of `build_parser`.
        load: opens a tokenizer from checkpoint, step, set of weights, and whether to verify checksums.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("absl").setLevel(logging.WARNING)
    try:
        for name in ("batch_size", "max_images"):
            if (value := getattr(options, name)) is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} {value}: expected at least 1")
        _decode(options, load) if options.decode else _encode(options, load)
    except KeyboardInterrupt:
        print("interrupted: run the same command to go on", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


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


def _encode(options: argparse.Namespace, load: Load) -> None:
    tokenizer = _load(options, load)
    data = data_config(options, tokenizer.config)
    encoding = Encoding(
        crops=options.crops,
        sub_tokens=_bits(options.sub_tokens),
        batch_size=options.batch_size,
        samples_per_shard=options.samples_per_shard,
        seed=options.seed,
        process_index=options.process_index,
        process_count=options.process_count,
        reference=options.checkpoint,
    )
    if options.overwrite and (removed := overwrite(options.output)):
        shown = ", ".join(removed[:6]) + (f" and {len(removed) - 6} more" if len(removed) > 6 else "")
        print(f"--overwrite: removed {len(removed)} files from {options.output}: {shown}")
    info = encode_dataset(tokenizer, data, options.output, encoding)
    if info is None:
        print(f"{options.output}: the shards of this process are finished, those of others are not")
        return
    left_out = f", {info.bad} left out because they cannot be decoded" if info.bad else ""
    print(f"{TokenShardSource(options.output).describe()}{left_out}")


def _decode(options: argparse.Namespace, load: Load) -> None:
    source = TokenShardSource(options.decode)
    options.checkpoint = options.checkpoint or source.info.tokenizer.reference
    count = decode_dataset(
        _load(options, load), source, options.output, batch_size=options.batch_size, max_images=options.max_images
    )
    print(f"{count} pictures in {options.output}")


def _load(options: argparse.Namespace, load: Load) -> EncodingTokenizer:
    if not options.checkpoint:
        raise ValueError("--checkpoint is missing: name the tokenizer's work directory, step or .safetensors file")
    return load(options.checkpoint, step_of(options.step), options.weights, options.checksums)


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


def _bits(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"--sub-tokens {text}: expected the bits of the two sub-tokens, such as 6,12")
    return int(parts[0]), int(parts[1])
