"""Reconstruct images or videos: encode and decode them with a tokenizer.

Of images, writes every reconstruction as PNG, a side-by-side picture, the ids as `ids.npz`, and PSNR per image and on
average as `psnr.json`. Images may have any size; they are padded to whole tokens and cropped back.

Of videos, with a video tokenizer, writes for each an MP4 with its sound, one beside the original, a strip of frames as
PNG, the ids, and PSNR per frame; they may have any length and size. Frames larger than --tile are cut into tiles that
overlap by --blend and are blended; --fade cross-fades windows, whose seams are visible otherwise, as published.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from voken_common.commands.frameworks import module_of
from voken_common.commands.options import add_checkpoint, add_cutting, add_device, cutting_of, step_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A checkpoint, images, and a folder for what is made of them."""
    add_checkpoint(parser)
    parser.add_argument("--input", required=True, help="an image or a video, or a folder of them")
    parser.add_argument("--output", required=True, help="folder to write to")
    add_cutting(parser)
    add_device(parser)


def run(options: argparse.Namespace) -> int:
    """Reconstruct, and print PSNR per image and on average."""
    from voken_common.evaluation.reconstruction import find_images, print_result, reconstruct

    root = Path(options.input)
    options.step = step_of(options.step)
    tokenizer = module_of(options, "reconstruct").open_tokenizer(options)
    if tokenizer.config.model.is_video:
        return _run_videos(options, tokenizer)
    paths = find_images(root)
    print_result(reconstruct(tokenizer, paths, root, Path(options.output)), options.output)
    return 0


def _run_videos(options: argparse.Namespace, tokenizer: Any) -> int:
    from voken_common.evaluation.reconstruction import output_names
    from voken_common.evaluation.video import find_videos, reconstruct_videos

    root = Path(options.input)
    paths = find_videos(root)
    names = output_names(paths, root)
    values = reconstruct_videos(tokenizer, paths, names, Path(options.output), cutting_of(options))
    for name, value in values.items():
        print(f"{value:7.2f} dB  {name}")
    left_out = f", {len(paths) - len(values)} left out" if len(values) < len(paths) else ""
    mean = sum(values.values()) / len(values)
    print(f"{mean:7.2f} dB  mean of {len(values)} video(s){left_out}, written to {options.output}")
    return 0
