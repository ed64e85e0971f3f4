"""Reconstruct images or videos: encode and decode them with a tokenizer.

Of images, writes every reconstruction as PNG, a side-by-side picture, the ids as `ids.npz`, and PSNR per image and on
average as `psnr.json`. Images may have any size; they are padded to whole tokens and cropped back. Files that do not
decode are left out and told.

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
    parser.add_argument(
        "--input", required=True, help="an image or a video, a folder of them, or a text file of the paths of images"
    )
    parser.add_argument("--output", required=True, help="folder to write to")
    group = parser.add_argument_group("images")
    group.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    group.add_argument(
        "--image-size", type=int, metavar="N", help="resize every image and cut a square of N pixels from its middle"
    )
    group.add_argument(
        "--resize",
        choices=("pil", "cv2", "none"),
        help="convention of that resize; default: what the tokenizer was trained with",
    )
    group.add_argument(
        "--exif-rotate",
        action=argparse.BooleanOptionalAction,
        help="turn images upright by their EXIF tag; default: what the tokenizer was trained with",
    )
    group.add_argument("--batch-size", type=int, default=8, metavar="N", help="images of one size at once")
    group.add_argument(
        "--pad-multiple",
        type=int,
        metavar="PIXELS",
        help="pad sides to multiples of this; default: whole tokens, more where images have many sizes",
    )
    add_cutting(parser)
    add_device(parser)


def run(options: argparse.Namespace) -> int:
    """Reconstruct, and print PSNR per image and on average."""
    from voken_common.evaluation.images.inputs import find_images
    from voken_common.evaluation.images.reconstruct import Treatment, print_result, reconstruct

    for name in ("image_size", "batch_size", "pad_multiple", "limit"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value}: expected at least 1")
    root, output = Path(options.input), Path(options.output)
    if not root.exists():
        raise FileNotFoundError(f"--input {root}: no such file or folder")
    options.step = step_of(options.step)
    tokenizer = module_of(options, "reconstruct").open_tokenizer(options)
    if tokenizer.config.model.is_video:
        return _run_videos(options, tokenizer)
    found = find_images(root, output, options.limit)
    treatment = Treatment(
        options.image_size, options.resize, options.exif_rotate, options.batch_size, options.pad_multiple
    )
    print_result(reconstruct(tokenizer, found, output, treatment), options.output)
    return 0


def _run_videos(options: argparse.Namespace, tokenizer: Any) -> int:
    from voken_common.evaluation.images.reconstruct import output_names
    from voken_common.evaluation.videos.reconstruct import find_videos, reconstruct_videos

    root = Path(options.input)
    paths = find_videos(root)
    keys = [str(path.relative_to(root)) if root in path.parents else path.name for path in paths]
    names = dict(zip(paths, output_names(keys), strict=True))
    values = reconstruct_videos(tokenizer, paths, names, Path(options.output), cutting_of(options))
    for name, value in values.items():
        print(f"{value:7.2f} dB  {name}")
    left_out = f", {len(paths) - len(values)} left out" if len(values) < len(paths) else ""
    mean = sum(values.values()) / len(values)
    print(f"{mean:7.2f} dB  mean of {len(values)} video(s){left_out}, written to {options.output}")
    return 0
