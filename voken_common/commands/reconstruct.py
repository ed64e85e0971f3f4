"""Reconstruct images: encode and decode them with a tokenizer.

Writes every reconstruction as PNG, a side-by-side picture, the ids as `ids.npz`, and PSNR per image and on average as
`psnr.json`. Images may have any size; they are padded to whole tokens and cropped back.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from voken_common.commands.frameworks import module_of
from voken_common.commands.options import add_checkpoint, add_device, step_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A checkpoint, images, and a folder for what is made of them."""
    add_checkpoint(parser)
    parser.add_argument("--input", required=True, help="an image, or a folder of images")
    parser.add_argument("--output", required=True, help="folder to write to")
    add_device(parser)


def run(options: argparse.Namespace) -> int:
    """Reconstruct, and print PSNR per image and on average."""
    from voken_common.evaluation.reconstruction import find_images, print_result, reconstruct

    root = Path(options.input)
    paths = find_images(root)
    options.step = step_of(options.step)
    tokenizer = module_of(options, "reconstruct").open_tokenizer(options)
    print_result(reconstruct(tokenizer, paths, root, Path(options.output)), options.output)
    return 0
