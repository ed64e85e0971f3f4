"""Train the small tokenizer of a quickstart configuration, then reconstruct held-out photographs with it.

Writes `quickstart.png` into the work directory and prints one JSON object as the last line: PSNR in dB and codebook
usage on held-out crops (EMA weights), seconds of everything after start-up of Python, and the picture.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from pathlib import Path

CROP = 128
COLUMNS = 8


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/quickstart_lfq.yaml")
    parser.add_argument("--workdir", help="default runs/<name of the configuration>; an unfinished run there continues")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    return parser.parse_args()


def held_out_crops(config):
    """Central crops, CROP pixels a side, of the held-out part of every photograph."""
    from voken_common.config.data import SkimageConfig
    from voken_common.data.pipeline import build_validation_batches

    data = config.data.model_copy(
        update={"image_size": CROP, "validation": SkimageConfig(region="held_out", crops=COLUMNS)}
    )
    (batch,) = build_validation_batches(data, batch_size=COLUMNS)
    return batch["image"]


def main() -> int:
    """Exit status 0, or 2 for settings that cannot be used."""
    options, start = parse(), time.perf_counter()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("absl").setLevel(logging.WARNING)
    logging.getLogger("jax").setLevel(logging.ERROR)
    from voken_common.config.loading import ConfigError, load_config
    from voken_common.metrics import psnr
    from voken_common.visual import reconstruction_grid, save_png
    from voken_jax.tokenizer.api import Tokenizer
    from voken_jax.training.run import train

    try:
        config = load_config(options.config, options.overrides)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    workdir = Path(options.workdir or Path("runs") / config.name)
    metrics = train(config, workdir)
    if not metrics:
        return 0
    tokenizer = Tokenizer.load(workdir)
    originals = held_out_crops(config)
    ids = tokenizer.encode(originals)
    reconstructions = tokenizer.decode(ids)
    labels = [f"{value:.1f} dB" for value in psnr(originals, reconstructions)]
    picture = save_png(workdir / "quickstart.png", reconstruction_grid(originals, reconstructions, COLUMNS, labels))
    print(f"{CROP}x{CROP} pixels became {ids.shape[1]}x{ids.shape[2]} ids of {tokenizer.codebook_size} codes; ")
    print("above: held-out photographs, below: decoded from their ids")
    result = {
        "psnr": round(metrics["psnr"], 2),
        "codebook_usage": round(metrics["codebook_usage"], 4),
        "seconds": round(time.perf_counter() - start, 1),
        "picture": str(picture),
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
