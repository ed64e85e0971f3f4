"""Train the small tokenizer of a quickstart configuration, then reconstruct held-out photographs with it.

Writes `quickstart.png` into the work directory, prints a table of PSNR beside that of a k-means quantizer of the same
bits per pixel on the same crops, and one JSON object as the last line: mean PSNR in dB of the picture's crops and the
worst one, the same of k-means, codebook usage (EMA weights), seconds of everything after start-up of Python, and the
picture.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

COLUMNS = 4


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/quickstart_lfq.yaml")
    parser.add_argument("--framework", choices=("jax", "torch"), default="jax")
    parser.add_argument("--workdir", help="default runs/<name of the configuration>; an unfinished run there continues")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    return parser.parse_args(arguments)


def trained(config: Any, workdir: Path, framework: str) -> tuple[Any, dict[str, float]]:
    """The tokenizer of a run in one of the frameworks, and the metrics of its last validation; empty: stopped."""
    metrics = importlib.import_module(f"voken_{framework}.training.run").train(config, workdir)
    api = importlib.import_module(f"voken_{framework}.tokenizer.api")
    return (api.Tokenizer.load(workdir) if metrics else None), metrics


def through_ids(tokenizer: Any, images: np.ndarray, framework: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids of images (B, H, W, 3), and what they are decoded to; PyTorch takes and gives channels first."""
    if framework == "jax":
        ids = tokenizer.encode(images)
        return np.asarray(ids), np.asarray(tokenizer.decode(ids))
    import torch

    ids = tokenizer.encode(torch.tensor(images).movedim(-1, 1))
    return ids.cpu().numpy(), tokenizer.decode(ids).movedim(1, -1).cpu().numpy()


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, or 2 for settings that cannot be used."""
    options, start = parse(arguments), time.perf_counter()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("absl").setLevel(logging.WARNING)
    logging.getLogger("jax").setLevel(logging.ERROR)
    from voken_common.config.loading import ConfigError, load_config
    from voken_common.quickstart.comparison import compare, held_out_crops, photograph_names, table
    from voken_common.visual import reconstruction_grid, save_png

    try:
        config = load_config(options.config, options.overrides)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    workdir = Path(options.workdir or Path("runs") / config.name)
    tokenizer, metrics = trained(config, workdir, options.framework)
    if tokenizer is None:
        return 0
    originals = held_out_crops()
    ids, reconstructions = through_ids(tokenizer, originals, options.framework)
    seconds = time.perf_counter() - start
    rows = compare(config.name, originals, reconstructions, tokenizer.downsampling, tokenizer.codebook_size)
    names = photograph_names()
    drawn = reconstruction_grid(originals, reconstructions, COLUMNS, names)
    picture = save_png(workdir / "quickstart.png", drawn)
    side = originals.shape[1]
    print(f"\n{side}x{side} pixels became {ids.shape[1]}x{ids.shape[2]} ids of {tokenizer.codebook_size} codes\n")
    print(table(rows, names), end="\n\n")
    ours, kmeans = rows
    result = {
        "psnr": round(float(ours.psnr.mean()), 2),
        "psnr_worst": round(float(ours.psnr.min()), 2),
        "psnr_kmeans": round(float(kmeans.psnr.mean()), 2),
        "bits_per_pixel": round(ours.bits_per_pixel, 3),
        "codebook_usage": round(metrics["codebook_usage"], 4),
        "seconds": round(seconds, 1),
        "picture": str(picture),
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
