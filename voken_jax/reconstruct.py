"""Reconstruct images: `python -m voken_jax.reconstruct --checkpoint DIR --input FILE_OR_DIR --output DIR`.

Writes every reconstruction as PNG, a side-by-side picture, the ids as `ids.npz`, and PSNR per image and on average as
`psnr.json`. Images may have any size; they are padded to whole tokens and cropped back.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
PICTURE_IMAGES = 16


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m voken_jax.reconstruct", description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="a work directory, or the folder of one step")
    parser.add_argument("--input", required=True, help="an image, or a folder of images")
    parser.add_argument("--output", required=True, help="folder to write to")
    parser.add_argument("--step", default="latest", help="latest, best or a number")
    parser.add_argument("--weights", choices=("ema", "raw"), default="ema")
    return parser.parse_args(arguments)


def find_images(path: Path) -> list[Path]:
    """The image itself, or every image below a folder, sorted.

    Raises:
        FileNotFoundError: nothing there, or no image in the folder.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"--input {path}: no such file or folder")
    images = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not images:
        raise FileNotFoundError(f"--input {path}: no image in it; looked for {', '.join(sorted(SUFFIXES))}")
    return images


def output_names(images: list[Path], root: Path) -> dict[Path, str]:
    """A file name per image without folders or suffix; the path below `root` keeps them apart."""
    return {p: "__".join(p.relative_to(root).parts) if root in p.parents else p.name for p in images}


def reconstruct(options: argparse.Namespace) -> dict[str, float]:
    """Run the command; returns PSNR in dB by image."""
    from tqdm import tqdm

    from voken_common.data.decode import decode_image
    from voken_common.data.transforms import to_float
    from voken_common.files import replacing
    from voken_common.metrics import psnr
    from voken_common.pixels import pad_to_multiple
    from voken_common.visual import save_png, side_by_side
    from voken_jax.tokenizer import Tokenizer

    step = int(options.step) if options.step.isdecimal() else options.step
    paths = find_images(Path(options.input))
    tokenizer = Tokenizer.load(options.checkpoint, step=step, weights=options.weights)
    output, names = Path(options.output), output_names(paths, Path(options.input))
    ids: dict[str, np.ndarray] = {}
    values: dict[str, float] = {}
    shown: list[tuple[np.ndarray, np.ndarray, str]] = []
    for path in tqdm(paths, unit="image", disable=len(paths) < 2):
        image = to_float(decode_image(path))[None]
        padded, region = pad_to_multiple(image, tokenizer.downsampling)
        found = tokenizer.encode(padded)
        result = region.crop(np.asarray(tokenizer.decode(found)))
        name = names[path]
        ids[name], values[name] = np.asarray(found)[0], float(psnr(image, result)[0])
        save_png(output / f"{name}.reconstruction.png", _pixels(result[0]))
        if len(shown) < PICTURE_IMAGES:
            shown.append((image[0], result[0], f"{values[name]:.2f} dB"))
    originals, results, labels = zip(*shown, strict=True)
    save_png(output / "side_by_side.png", side_by_side(originals, results, labels))
    with replacing(output / "ids.npz") as file:
        arrays: Any = ids
        np.savez_compressed(file, **arrays)
    with replacing(output / "psnr.json") as file:
        file.write(json.dumps({"mean": float(np.mean(list(values.values()))), "images": values}, indent=1).encode())
    return values


def _pixels(image: np.ndarray) -> np.ndarray:
    from voken_common.pixels import to_uint8

    return to_uint8(image)


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, or 2 for input that cannot be used."""
    options = parse(arguments)
    try:
        values = reconstruct(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, value in values.items():
        print(f"{value:7.2f} dB  {name}")
    print(f"{np.mean(list(values.values())):7.2f} dB  mean of {len(values)} image(s), written to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
