"""Image files through a tokenizer, and what is written of them; `voken reconstruct`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from voken_common.atomic_write import replacing
from voken_common.data.decode import IMAGE_SUFFIXES, decode_image, is_image_name
from voken_common.data.transforms import to_float
from voken_common.metrics import bounded_psnr
from voken_common.pixels import pad_to_multiple, to_uint8
from voken_common.visual import save_png, side_by_side

PICTURE_IMAGES = 16


class ImageTokenizer(Protocol):
    """What the command needs of a tokenizer: images (B, H, W, 3) in [-1, 1], ids (B, h, w), both NumPy arrays."""

    downsampling: int
    encode: Callable[[Float[np.ndarray, "B H W 3"]], Int[np.ndarray, "B h w"]]
    decode: Callable[[Int[np.ndarray, "B h w"]], Float[np.ndarray, "B H W 3"]]


def find_images(path: Path) -> list[Path]:
    """The image itself, or every image below a folder, sorted.

    Raises:
        FileNotFoundError: nothing there, or no image in the folder.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"--input {path}: no such file or folder")
    images = sorted(p for p in path.rglob("*") if is_image_name(p.name))
    if not images:
        raise FileNotFoundError(f"--input {path}: no image in it; looked for {', '.join(IMAGE_SUFFIXES)}")
    return images


def output_names(images: list[Path], root: Path) -> dict[Path, str]:
    """A file name per image without folders; the path below `root` keeps them apart."""
    return {p: "__".join(p.relative_to(root).parts) if root in p.parents else p.name for p in images}


def reconstruct(tokenizer: ImageTokenizer, paths: list[Path], root: Path, output: Path) -> dict[str, float]:
    """Encode and decode image files of any size, padded to whole tokens and cropped back.

    Writes every reconstruction as PNG, a side-by-side picture, the ids as `ids.npz`, and PSNR per image and on average
    as `psnr.json`.

    Returns:
        PSNR in dB by image.
    """
    names = output_names(paths, root)
    ids: dict[str, Any] = {}
    values: dict[str, float] = {}
    shown: list[tuple[np.ndarray, np.ndarray, str]] = []
    for path in tqdm(paths, unit="image", disable=len(paths) < 2):
        image = to_float(decode_image(path))[None]
        padded, region = pad_to_multiple(image, tokenizer.downsampling)
        found = tokenizer.encode(padded)
        result = region.crop(tokenizer.decode(found))
        name = names[path]
        ids[name], values[name] = found[0], float(bounded_psnr(image, result)[0])
        save_png(output / f"{name}.reconstruction.png", to_uint8(result[0]))
        if len(shown) < PICTURE_IMAGES:
            shown.append((image[0], result[0], f"{values[name]:.2f} dB"))
    originals, results, labels = zip(*shown, strict=True)
    save_png(output / "side_by_side.png", side_by_side(originals, results, labels))
    with replacing(output / "ids.npz") as file:
        np.savez_compressed(file, **ids)
    with replacing(output / "psnr.json") as file:
        file.write(json.dumps({"mean": float(np.mean(list(values.values()))), "images": values}, indent=1).encode())
    return values


def print_result(values: dict[str, float], output: str) -> None:
    """PSNR per image and on average."""
    for name, value in values.items():
        print(f"{value:7.2f} dB  {name}")
    print(f"{np.mean(list(values.values())):7.2f} dB  mean of {len(values)} image(s), written to {output}")
