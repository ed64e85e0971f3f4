"""The sample command of both frameworks: pictures of classes, or the file that the ADM evaluator reads."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image
from tqdm import tqdm

from voken_common.atomic_write import replacing
from voken_common.commands.options import add_no_verify
from voken_common.commands.reconstruct import step_of
from voken_common.config.generator import GeneratorConfig
from voken_common.config.sampling import Sampling
from voken_common.sampling.npz import NpzWriter
from voken_common.sampling.requests import check_sampling, preset, seed_of
from voken_common.visual import grid, save_png

INTERRUPTED = 130
GRID_COLUMNS, GRID_ROWS = 16, 32
SETTINGS_FILE = "sampling.json"
_FLAGS = ("scale", "temperature", "top_k", "top_p")


class Sampler(Protocol):
    """What the command needs of a generator."""

    config: GeneratorConfig
    origin: str
    """Its checkpoint."""
    image_size: int
    """Side of its images in pixels."""

    def draw(
        self, labels: Int[np.ndarray, " B"], seeds: Sequence[int], sampling: Sampling
    ) -> UInt8[np.ndarray, "B H W 3"]:
        """Images of classes."""


Load = Callable[[argparse.Namespace, Any], Sampler]
"""(options, step) -> sampler."""


def build_parser(program: str, description: str | None, process: tuple[int, int] = (0, 1)) -> argparse.ArgumentParser:
    """The command line that both frameworks share; `process` is the default of --process-index and --process-count."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {program}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, help="a work directory, one step of it, or a .safetensors file")
    parser.add_argument("--step", default="latest", help="of a work directory: latest, best or a number")
    parser.add_argument("--weights", choices=("ema", "raw"), help="default: the averages, if the checkpoint has them")
    add_no_verify(parser)
    parser.add_argument("--tokenizer", help="checkpoint of the tokenizer; default: the one the generator names")
    parser.add_argument("--classes", required=True, help="numbers and ranges such as 207,360 or 0-9,207; or all")
    parser.add_argument("--num-per-class", type=int, default=8, metavar="N")
    parser.add_argument("--output", metavar="DIR", help="write PNG files and a grid here")
    parser.add_argument("--npz", metavar="FILE", help="write one uint8 array arr_0 of all images here, shuffled")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="samples at once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--preset",
        metavar="MODEL",
        help="settings of a published generator, such as IBQ/imagenet_conditional_llama_B; default: the checkpoint's "
        "own",
    )
    parser.add_argument("--scale", metavar="A[,B]", help="guidance scale, one value per sub-token; 1 means none")
    parser.add_argument("--temperature", metavar="A[,B]", help="0 takes the most likely code")
    parser.add_argument("--top-k", metavar="A[,B]", help="codes that stay; 0 means all")
    parser.add_argument("--top-p", metavar="A[,B]", help="probability mass that stays")
    parser.add_argument("--guidance", choices=("constant", "linear", "power-cosine"))
    parser.add_argument("--cache-dtype", choices=("float32", "bfloat16"), help="of keys and values; default: computed")
    parser.add_argument("--process-index", type=int, default=process[0], metavar="I", help="which of several processes")
    parser.add_argument("--process-count", type=int, default=process[1], metavar="P", help="that share the work")
    return parser


def run(options: argparse.Namespace, load: Load) -> int:
    """Run the command; exit status 0 done, 2 input that cannot be used, 130 interrupted.

    Args:
        options: of `build_parser`.
        load: opens a generator.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("absl").setLevel(logging.WARNING)
    try:
        if (options.output is None) == (options.npz is None):
            raise ValueError("one of --output DIR (PNG files) and --npz FILE (one array) is needed")
        _check_numbers(options)
        sampler = load(options, step_of(options.step))
        job = Job(sampler, options)
        print(job.write_npz() if options.npz is not None else job.write_pictures())
    except KeyboardInterrupt:
        print("interrupted: run the same command to go on", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _check_numbers(options: argparse.Namespace) -> None:
    for name, least in (("num_per_class", 1), ("batch_size", 1), ("seed", 0), ("process_count", 1)):
        if (value := getattr(options, name)) < least:
            raise ValueError(f"--{name.replace('_', '-')} {value}: expected at least {least}")
    if not 0 <= options.process_index < options.process_count:
        raise ValueError(
            f"--process-index {options.process_index} of --process-count {options.process_count}: expected 0 to "
            f"{options.process_count - 1}"
        )


def parse_classes(text: str, classes: int) -> list[int]:
    """The classes of `--classes`, each once, in the order in which they are named.

    Raises:
        ValueError: not numbers, a range that runs backwards, or no such class.
    """
    if text.strip() == "all":
        return list(range(classes))
    found: dict[int, None] = {}
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(
                f"--classes {text}: {part.strip()!r} is no class; expected numbers and ranges such as 207,360 or 0-9 "
                f"below {classes}, or all"
            )
        start, stop = int(first), int(last if dash else first)
        if stop < start or stop >= classes:
            raise ValueError(f"--classes {text}: {part.strip()} is not within the classes 0 to {classes - 1}")
        found |= dict.fromkeys(range(start, stop + 1))
    return list(found)


def parse_sampling(options: argparse.Namespace, config: GeneratorConfig) -> Sampling:
    """The settings of the preset, else of the checkpoint, with those of the command line over them.

    Raises:
        ValueError: values that cannot be, or not one per sub-token.
    """
    base = config.sampling if options.preset is None else preset(options.preset)
    changes: dict[str, Any] = {} if options.guidance is None else {"guidance": options.guidance}
    for name in _FLAGS:
        if (text := getattr(options, name)) is not None:
            kind = int if name == "top_k" else float
            try:
                changes[name] = tuple(kind(part) for part in text.split(","))
            except ValueError as error:
                flag = name.replace("_", "-")
                wanted = "whole numbers" if kind is int else "numbers"
                raise ValueError(f"--{flag} {text}: expected {wanted}, one per sub-token, such as 1 or 1,2") from error
    return check_sampling(base.settings()._replace(**changes), config)


class Job:
    """All samples of one call of the command.

    Sample `number` is of class `classes[number // num_per_class]`. Its seed follows from the common one, its class and
    its number within the class, so that it is the same whatever else is sampled.
    """

    def __init__(self, sampler: Sampler, options: argparse.Namespace):
        self._sampler, self._options = sampler, options
        self._classes = parse_classes(options.classes, sampler.config.model.classes)
        self._sampling = parse_sampling(options, sampler.config)
        self._per_class: int = options.num_per_class
        self._total = len(self._classes) * self._per_class

    def settings(self) -> dict[str, Any]:
        """All that decides the images, as plain values."""
        options = self._options
        return {
            "checkpoint": self._sampler.origin,
            "weights": options.weights,
            "tokenizer": options.tokenizer or self._sampler.config.tokenizer,
            "sampling": self._sampling._asdict(),
            "cache_dtype": options.cache_dtype,
            "sampling_seed": options.seed,
            "classes": self._classes,
            "num_per_class": self._per_class,
        }

    def draw(self, numbers: Int[np.ndarray, " B"]) -> UInt8[np.ndarray, "B H W 3"]:
        """Images of samples."""
        labels = np.array([self._classes[number // self._per_class] for number in numbers])
        seeds = [
            seed_of(self._options.seed, int(label), int(number % self._per_class))
            for label, number in zip(labels, numbers, strict=True)
        ]
        return self._sampler.draw(labels, seeds, self._sampling)

    def write_npz(self) -> str:
        """The evaluator's file. Returns what to say."""
        options, side = self._options, self._sampler.image_size
        writer = NpzWriter(
            options.npz,
            total=self._total,
            shape=(side, side),
            batch_size=options.batch_size,
            settings=self.settings(),
            seed=options.seed,
            process_index=options.process_index,
            process_count=options.process_count,
        )
        first, last = writer.share
        with self._progress(last - first, writer.done()) as bar:
            complete = writer.run(self.draw, bar.update)
        if complete:
            return f"{options.npz}: {self._total} images of {side} x {side} pixels"
        return f"{options.npz}: the images of this process are finished, those of others are not"

    def write_pictures(self) -> str:
        """PNG files per class and, once all are there, a grid with a row per class. Returns what to say."""
        output, options = Path(self._options.output), self._options
        if output.exists() and not output.is_dir():
            raise ValueError(f"--output {output} is a file, expected a folder")
        self._require_same(output / SETTINGS_FILE)
        mine = range(options.process_index, self._total, options.process_count)
        missing = [number for number in mine if not self._picture(output, number).is_file()]
        with self._progress(len(mine), len(mine) - len(missing)) as bar:
            for start in range(0, len(missing), options.batch_size):
                numbers = missing[start : start + options.batch_size]
                padded = numbers + numbers[-1:] * (options.batch_size - len(numbers))
                # The last batch is filled up, so that one program draws them all: those images are left out.
                for number, image in zip(numbers, self.draw(np.array(padded)), strict=False):
                    save_png(self._picture(output, number), image)
                bar.update(len(numbers))
        if not all(self._picture(output, number).is_file() for number in range(self._total)):
            return f"{output}: the pictures of this process are finished, those of others are not"
        columns = min(self._per_class, GRID_COLUMNS)
        shown = [
            np.asarray(Image.open(self._picture(output, row * self._per_class + column)))
            for row in range(min(len(self._classes), GRID_ROWS))
            for column in range(columns)
        ]
        save_png(output / "grid.png", grid(shown, columns))
        return f"{output}: {self._total} pictures, and grid.png"

    def _picture(self, output: Path, number: int) -> Path:
        label, place = self._classes[number // self._per_class], number % self._per_class
        return output / f"class_{label:04d}" / f"{place:05d}.png"

    def _require_same(self, file: Path) -> None:
        """Pictures that are there already belong to these settings; more classes or more of each may be added."""
        settings = json.loads(json.dumps(self.settings()))
        for key in ("classes", "num_per_class"):
            del settings[key]
        found = json.loads(file.read_text()) if file.is_file() else settings
        changed = sorted(key for key in settings if found.get(key) != settings[key])
        if changed:
            raise ValueError(
                f"{file.parent} holds pictures made with other settings ({', '.join(changed)}; {changed[0]} was "
                f"{found.get(changed[0])}, is {settings[changed[0]]}): use another --output"
            )
        with replacing(file) as new:
            new.write(json.dumps(settings, indent=1).encode())

    def _progress(self, total: int, done: int) -> tqdm[Any]:
        options = self._options
        return tqdm(
            total=total,
            initial=done,
            unit="image",
            desc=f"process {options.process_index}" if options.process_count > 1 else None,
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 15.0,
        )
