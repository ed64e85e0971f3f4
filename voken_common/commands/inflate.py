"""Make a video tokenizer of an image tokenizer.

Every kernel becomes the last frame of a 3-D kernel that is zero elsewhere, as published video tokenizers began. The
result is a .safetensors file that every command reads; `initialize.inflate` of a configuration does the same at the
start of a training run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from voken_common.commands.frameworks import module_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """An image tokenizer, and a file for the video tokenizer."""
    parser.add_argument("checkpoint", metavar="IMAGE_CHECKPOINT", help="of an image tokenizer, or a published name")
    parser.add_argument("output", metavar="FILE.safetensors", type=Path)
    parser.add_argument(
        "--config", metavar="FILE", help="of the video tokenizer; default: that of the image tokenizer, made one"
    )
    parser.add_argument("--weights", choices=("ema", "raw"), help="default: the averages, if the checkpoint has them")
    parser.add_argument("--overwrite", action="store_true", help="replace the file")


def run(options: argparse.Namespace) -> int:
    """Inflate in the framework of `options`, and write the file."""
    from voken_common.atomic_write import replacing
    from voken_common.checkpoints.conversion.safetensors_file import write_safetensors
    from voken_common.checkpoints.inflation import video_config
    from voken_common.checkpoints.steps import Meta
    from voken_common.config.loading import load_config

    if options.output.suffix != ".safetensors":
        raise ValueError(f"{options.output}: expected a name that ends in .safetensors")
    if options.output.exists() and not options.overwrite:
        raise ValueError(f"{options.output} is there already: --overwrite replaces it")
    backend = module_of(options, "inflate")
    config = load_config(options.config) if options.config else video_config(backend.config_of(options.checkpoint))
    arrays = backend.inflated(options.checkpoint, config, options.weights)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(options.output) as file:
        write_safetensors(file, arrays, Meta(config, 0, {}), options.weights or "ema")
    size = sum(array.size for array in arrays.values())
    print(f"{options.output}: {config.name}, {size:,} parameters, {config.model.time_downsampling} frames per token")
    return 0
