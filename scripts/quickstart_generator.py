"""Train a small class-conditional generator on photographs: tokenizer, tokens, training, samples.

A class is a photograph. The tokenizer of `make quickstart` is trained first where it is missing, then crops of every
photograph become tokens, and a generator is trained on them. Writes `quickstart_generator.png` into the work directory:
a row per class, on the left a held-out crop of its photograph and what the tokenizer makes of it, then samples of the
class. The last line is one JSON object: seconds without the training of the tokenizer, held-out loss, the picture, and
how often the class of a sample is told by its colours alone (their mean and deviation), beside the same figure of
held-out crops that went through the tokenizer, and of guessing.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from pathlib import Path

import numpy as np

TOKENIZER_CONFIG = Path("configs/quickstart_lfq.yaml")
CROPS = {"train": 4096, "held_out": 256}
SHOWN = 8
JUDGED = 16
"""Samples per class that are judged; the first of them are shown."""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/quickstart_generator.yaml")
    parser.add_argument("--workdir", help="default runs/<name of the configuration>; an unfinished run there continues")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    return parser.parse_args(arguments)


def crops_of(config, region, pixels):
    """Return the data settings that read crops of one region of every photograph."""
    from voken_common.config.schema.data import DataConfig, SkimageConfig

    source = SkimageConfig(region=region, crops=CROPS[region])
    return DataConfig(train=source, image_size=pixels, resize="none", crop="center", workers=0, cache=True)


def load_tokenizer(path):
    """The tokenizer, trained first if there is none."""
    from voken_common.config.loading import load_config
    from voken_jax.tokenizer.api import Tokenizer
    from voken_jax.training.run import train

    if not (path / "checkpoints").is_dir():
        print(f"no tokenizer in {path}: training the one of {TOKENIZER_CONFIG} first", flush=True)
        train(load_config(TOKENIZER_CONFIG), path)
    return Tokenizer.load(path)


def held_out_images(data):
    """(images in [-1, 1], class) of held-out crops, evenly spread."""
    from voken_common.data.pipeline import build_validation_batches

    (batch,) = build_validation_batches(
        data.model_copy(update={"validation": data.train}), batch_size=CROPS["held_out"]
    )
    return batch["image"], batch["label"]


def class_by_colour(images, references, classes):
    """The class whose references have the nearest colours, by mean and deviation, for every image.

    Args:
        images: (B, H, W, 3) to be judged.
        references: (N, H, W, 3) of known classes.
        classes: (N,) theirs.
    """

    def colours(batch):
        return np.concatenate([batch.mean(axis=(1, 2)), batch.std(axis=(1, 2))], axis=-1)

    centres = np.stack([colours(references[classes == c]).mean(axis=0) for c in range(classes.max() + 1)])
    return np.linalg.norm(colours(images)[:, None] - centres, axis=-1).argmin(axis=1)


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, or 2 for settings that cannot be used."""
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("absl").setLevel(logging.WARNING)
    logging.getLogger("jax").setLevel(logging.ERROR)
    from voken_common.config.loading import load_any_config
    from voken_common.data.sources.skimage import PHOTOGRAPHS
    from voken_common.data.tokens.encode import Encoding, encode_dataset
    from voken_common.visual import class_wall, save_png
    from voken_jax.generator.api import Generator
    from voken_jax.tokenizer.arrays import Arrays
    from voken_jax.training.run import train

    try:
        config = load_any_config(options.config, options.overrides)
        tokenizer = load_tokenizer(Path(config.tokenizer))
        start = time.perf_counter()
        pixels = config.model.grid * tokenizer.downsampling
        for region, folder in (("train", config.data.train), ("held_out", config.data.validation)):
            data = crops_of(config, region, pixels)
            encode_dataset(Arrays(tokenizer), data, folder, Encoding(batch_size=64, reference=config.tokenizer))
        workdir = Path(options.workdir or Path("runs") / config.name)
        metrics = train(config, workdir)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not metrics:
        return 0
    generator = Generator.load(workdir, tokenizer)
    labels = np.repeat(np.arange(generator.classes), JUDGED)
    samples = np.asarray(generator.sample(labels, seed=0).images)
    images, classes = held_out_images(data)
    decoded = np.concatenate([tokenizer.reconstruct(part) for part in np.split(images, len(images) // 32)])
    rows = samples.reshape(generator.classes, JUDGED, *samples.shape[1:])[:, :SHOWN]
    names = [name.rsplit(".", 1)[0].replace("_", " ") for name in PHOTOGRAPHS]
    pairs = np.concatenate([images, decoded], axis=2)
    shown = [pairs[classes == c][0] for c in range(generator.classes)]
    picture = save_png(workdir / "quickstart_generator.png", class_wall(names, shown, rows, zoom=3))
    # Half of the held-out crops say what colours a photograph has, so that the other half can be judged like samples.
    even = np.arange(len(images)) // generator.classes % 2 == 0
    known, known_classes = decoded[even], classes[even]
    print(f"every row: a held-out crop, decoded from its own tokens, then {SHOWN} samples of its class")
    result = {
        "seconds": round(time.perf_counter() - start, 1),
        "loss": round(metrics["loss"], 3),
        "class_by_colour": _share(class_by_colour(samples, known, known_classes) == labels),
        "class_by_colour_of_held_out_crops": _share(
            class_by_colour(decoded[~even], known, known_classes) == classes[~even]
        ),
        "class_by_guessing": _share(1 / generator.classes),
        "picture": str(picture),
    }
    print(json.dumps(result))
    return 0


def _share(values):
    return round(float(np.mean(values)), 3)


if __name__ == "__main__":
    sys.exit(main())
