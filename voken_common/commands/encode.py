"""Turn images, or the windows of videos, into tokens.

Writes token shards, which generators are trained on. The command may be killed at any time; the same command goes on,
and the shards are those of an undisturbed run. In JAX all devices are used. Several processes share the work: start
each with --process-index I --process-count P, or in PyTorch by torchrun --nproc-per-node N -m voken_torch.encode.
--decode DIR turns shards back into PNG files, or of videos into MP4. docs/tokens.md says more.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from voken_common.commands.frameworks import module_of
from voken_common.commands.options import (
    add_checkpoint,
    add_device,
    add_overrides,
    add_processes,
    check_processes,
    step_of,
)

Load = Callable[[argparse.Namespace], Any]
"""Opens the tokenizer of the options, as a `voken_common.data.tokens.encode.EncodingTokenizer`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A tokenizer, images, how they are cut, and a folder for the shards."""
    add_checkpoint(parser, required=False, of="of the tokenizer: ")
    parser.add_argument("--output", required=True, help="folder to write to")
    parser.add_argument(
        "--overwrite", action="store_true", help="remove the token shards that are in the folder, saying which, first"
    )
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="images per call of the network")
    parser.add_argument(
        "--data",
        metavar="FOLDER_OR_FILE",
        help="a folder of images or videos, a list of images, or YAML with a data section. A checkpoint says how its "
        "images are prepared, never where any lie; only the photographs of scikit-image need no --data",
    )
    parser.add_argument("--split", choices=("train", "validation"), default="train", help="which source of it")
    add_overrides(parser, "data.KEY=VALUE", "change a setting of the data")
    parser.add_argument("--image-size", type=int, metavar="N", help="side of the square that is cut from each image")
    parser.add_argument("--resize", choices=("pil", "cv2", "none"), help="convention of the short-side resize")
    parser.add_argument(
        "--crops", type=int, default=1, metavar="N", help="views per image; all but the first at random"
    )
    parser.add_argument("--sub-tokens", metavar="A,B", help="bits of the two sub-tokens of an LFQ code, such as 6,12")
    parser.add_argument("--samples-per-shard", type=int, default=4096, metavar="N", help="what an interruption costs")
    parser.add_argument("--seed", type=int, default=0, help="of the random crops")
    add_device(parser)
    add_processes(parser)
    parser.add_argument("--decode", metavar="DIR", help="turn the token shards of DIR into PNG files instead")
    parser.add_argument("--max-images", type=int, metavar="N", help="with --decode: only the first ones")


def run(options: argparse.Namespace) -> int:
    """Encode, or decode with --decode."""
    backend = module_of(options, "encode")
    check_processes(options, backend.launched())
    return transfer(options, backend.open_tokenizer)


def transfer(options: argparse.Namespace, load: Load) -> int:
    """Encode or decode with the tokenizer that `load` opens; exit status 0.

    Raises:
        ValueError, OSError: input that cannot be used.
    """
    for name in ("batch_size", "max_images"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value}: expected at least 1")
    _decode(options, load) if options.decode else _encode(options, load)
    return 0


def _encode(options: argparse.Namespace, load: Load) -> None:
    from voken_common.data.inspection import look_through
    from voken_common.data.tokens.encode import Encoding, encode_dataset
    from voken_common.data.tokens.folder import overwrite
    from voken_common.data.tokens.requested import data_config, sub_token_bits
    from voken_common.data.tokens.shards import TokenShardSource

    tokenizer = _load(options, load)
    data = data_config(options, tokenizer.config)
    encoding = Encoding(
        crops=options.crops,
        sub_tokens=sub_token_bits(options.sub_tokens),
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
    # A file that is no image is found before anything compiles.
    look_through(data.model_copy(update={"validation": None}))
    info = encode_dataset(tokenizer, data, options.output, encoding)
    if info is None:
        print(f"{options.output}: the shards of this process are finished, those of others are not")
        return
    left_out = f", {info.bad} left out because they cannot be decoded" if info.bad else ""
    print(f"{TokenShardSource(options.output).describe()}{left_out}")


def _decode(options: argparse.Namespace, load: Load) -> None:
    from voken_common.data.tokens.decode import decode_dataset
    from voken_common.data.tokens.shards import TokenShardSource

    source = TokenShardSource(options.decode)
    if not options.checkpoint:
        made_by = source.info.tokenizer
        raise ValueError(
            f"--checkpoint is missing: {options.decode} says that its tokens are of tokenizer {made_by.name}, from "
            f"{made_by.reference}; what a folder says is not followed, so name the checkpoint yourself"
        )
    tokenizer = _load(options, load)
    settings = {"batch_size": options.batch_size, "max_images": options.max_images}
    if tokenizer.config.model.is_video:
        from voken_common.data.tokens.decode_videos import decode_videos

        print(f"{decode_videos(tokenizer, source, options.output, **settings)} videos in {options.output}")
        return
    print(f"{decode_dataset(tokenizer, source, options.output, **settings)} pictures in {options.output}")


def _load(options: argparse.Namespace, load: Load) -> Any:
    if not options.checkpoint:
        raise ValueError("--checkpoint is missing: name the tokenizer's work directory, step or .safetensors file")
    options.step = step_of(options.step)
    return load(options)
