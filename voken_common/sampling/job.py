"""All samples of one call of `voken sample`: pictures of classes, or the file that the ADM evaluator reads."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int, UInt8
from tqdm import tqdm

from voken_common.atomic_write import replacing
from voken_common.config.schema.generator import GeneratorConfig
from voken_common.config.schema.sampling import Sampling
from voken_common.data.decode import decode_image
from voken_common.sampling.npz import NpzWriter
from voken_common.sampling.requests import check_sampling, class_number, preset, seed_of
from voken_common.untrusted.files import read_bytes
from voken_common.untrusted.json_text import loads
from voken_common.visual import grid, save_png

GRID_COLUMNS, GRID_ROWS = 16, 32
SETTINGS_FILE = "sampling.json"
_FLAGS = ("scale", "temperature", "top_k", "top_p")


class Sampler(Protocol):
    """The part of a generator that the command uses."""

    config: GeneratorConfig
    framework: str
    """JAX and PyTorch draw other samples from the same seed."""
    fingerprints: dict[str, str]
    """Of `generator` and `tokenizer`: their networks and weights, wherever their checkpoints lie."""
    image_size: int
    """Side of its images in pixels."""

    def draw(
        self, labels: Int[np.ndarray, " B"], seeds: Sequence[int], sampling: Sampling
    ) -> UInt8[np.ndarray, "B H W 3"]:
        """Images of classes."""


def parse_classes(text: str, classes: int, names: Sequence[str] = ()) -> list[int]:
    """The classes of `--classes`, each once, in the order in which they are named.

    Args:
        text: numbers, ranges and names, separated by commas; or all. `name:` and `number:` before one say which it is.
        classes: how many there are.
        names: of the classes by number; empty: they have none.

    Raises:
        ValueError: neither numbers nor names, a range that runs backwards, no such class, or a name that is the number
            of another class.
    """
    if text.strip() == "all" and "all" not in names:
        return list(range(classes))
    found: dict[int, None] = {}
    for part in [text.strip()] if text.strip() in names else map(str.strip, text.split(",")):
        found |= dict.fromkeys(_numbers_of(part, text, classes, names))
    return list(found)


def _numbers_of(part: str, text: str, classes: int, names: Sequence[str]) -> Sequence[int]:
    """Classes of one part of `--classes`."""
    kind, colon, rest = part.partition(":")
    if colon and kind == "name" and part not in names:
        return [class_number(rest, names)]
    if colon and kind == "number":
        part, names = rest, ()
    first, dash, last = part.partition("-")
    numeric = first.isdecimal() and (not dash or last.isdecimal())
    if part in names:
        number = class_number(part, names)
        if numeric and (dash or number != int(part)):
            raise ValueError(
                f"--classes {text}: {part} is the name of class {number}, and a number too: say name:{part} or "
                f"number:{part}"
            )
        return [number]
    if not numeric:
        if names:
            return [class_number(part, names)]
        raise ValueError(
            f"--classes {text}: {part!r} is no class; expected numbers and ranges such as 207,360 or 0-9 "
            f"below {classes}, or all"
        )
    start, stop = int(first), int(last if dash else first)
    if stop < start or stop >= classes:
        raise ValueError(f"--classes {text}: {part} is not within the classes 0 to {classes - 1}")
    return range(start, stop + 1)


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
        self._classes = parse_classes(options.classes, sampler.config.model.classes, sampler.config.class_names)
        self._sampling = parse_sampling(options, sampler.config)
        self._per_class: int = options.num_per_class
        self._total = len(self._classes) * self._per_class

    def settings(self) -> dict[str, Any]:
        """All that decides the images, as plain values."""
        options = self._options
        return {
            **self._sampler.fingerprints,
            "framework": self._sampler.framework,
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
        """Write the file that the evaluator reads.

        Returns:
            One line about it.
        """
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
        """Write PNG files per class and, once all are there, a grid with a row per class.

        Returns:
            One line about them.
        """
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
            decode_image(self._picture(output, row * self._per_class + column))
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
        found = loads(read_bytes(file)) if file.is_file() else settings
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
