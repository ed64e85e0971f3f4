"""Faults of data: images that are damaged or cut off, and a batch that is not finite."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

from faults.frameworks import STEPS, Framework, captured, must_equal, require


def image_folder(place: Path, count: int, seed: int = 0) -> list[Path]:
    """PNG and JPEG files of noise and gradients."""
    place.mkdir(parents=True)
    draw = np.random.default_rng(seed)
    files = []
    for number in range(count):
        slope = np.linspace(0, 200, 24)[None, :, None] + draw.integers(0, 55, (20, 24, 3))
        file = place / f"{number:03}.{'png' if number % 2 else 'jpg'}"
        Image.fromarray(slope.astype(np.uint8)).save(file)
        files.append(file)
    return files


def damaged_images(framework: Framework) -> str:
    """A truncated and a garbled image are reported and skipped; more of them than allowed stop the run."""
    place = framework.scratch / "images"
    files = image_folder(place, 24)
    files[3].write_bytes(files[3].read_bytes()[:200])
    files[4].write_bytes(b"\x89PNG not an image at all")
    source = (f"data.train={{kind: image_folder, path: {place}}}", "data.resize=pil", "training.steps=6")
    result = framework.run(framework.scratch / "images_run", *source, "data.max_bad_fraction=0.1")
    result.must(0, "003.png", "004.jpg", "next good image takes its place")
    framework.run(framework.scratch / "images_stop", *source, "data.max_bad_fraction=0").must(
        2, "that cannot be decoded", "data.max_bad_fraction"
    )
    return "1 cut, 1 garbled of 24"


def cut_tar(framework: Framework) -> str:
    """A tar that ends in the middle: found before training, its whole part is used; cut later, training refuses it."""
    from voken_common.data.tar.prepare import main as prepare

    place, output = framework.scratch / "set", framework.scratch / "prepared"
    files = image_folder(framework.scratch / "tar_images", 40)
    (place / "webdataset").mkdir(parents=True)
    tars = [place / "webdataset" / f"{number:05}.tar" for number in range(2)]
    for number, path in enumerate(tars):
        with tarfile.open(path, "w") as tar:
            for file in files[20 * number : 20 * number + 20]:
                tar.add(file, file.name)
    os.truncate(tars[1], tars[1].stat().st_size // 2)
    with captured() as text:
        prepare([str(place), "--output", str(output), "--min-side", "8", "--workers", "0"])
    require("00001.tar" in text.getvalue(), f"the cut tar was not named: {text.getvalue()[-300:]}")
    source = f"data.train={{kind: tar, sets: [{{index: {output / 'set.index'}, location: {place / 'webdataset'}}}]}}"
    run = framework.run(framework.scratch / "tar_run", source, "data.resize=pil", "training.steps=6")
    images = int(run.must(0).text.split(" images")[0].split()[-1].replace(",", ""))
    require(20 <= images < 40, f"{images} images were read of 20 in the whole tar and 20 in the cut one")
    os.truncate(tars[0], tars[0].stat().st_size // 2)
    framework.run(framework.scratch / "tar_stop", source, "data.resize=pil").must(2, "00000.tar")
    return f"{images} of 40 images left, then refused"


Batch = dict[str, np.ndarray]


@contextmanager
def changed(kind: Any, change: Callable[[Batch], None], *numbers: int) -> Iterator[None]:
    """The batches of these numbers (from 1) that iterators of a kind give are changed."""
    original, taken = kind.__next__, [0]

    def take(iterator: Any) -> Batch:
        batch: Batch = original(iterator)
        taken[0] += 1
        if taken[0] in numbers:
            change(batch)
        return batch

    with mock.patch.object(kind, "__next__", take):
        yield


@contextmanager
def dropped(kind: Any, *numbers: int) -> Iterator[None]:
    """The batches of these numbers (from 1) are drawn, and nobody gets them."""
    original, taken = kind.__next__, [0]

    def take(iterator: Any) -> Batch:
        batch: Batch = original(iterator)
        taken[0] += 1
        return take(iterator) if taken[0] in numbers else batch

    with mock.patch.object(kind, "__next__", take):
        yield


def spoiled(*numbers: int) -> AbstractContextManager[None]:
    """The images of the batches of these numbers (from 1) hold a value that is not finite."""
    from voken_common.data.pipeline import TrainIterator

    def spoil(batch: Batch) -> None:
        batch["image"] = batch["image"].copy()
        batch["image"][0, 0, 0, 0] = np.nan

    return changed(TrainIterator, spoil, *numbers)


def not_finite(framework: Framework) -> str:
    """A batch with a NaN stops the run; it is kept, can be replayed, and the checkpoint before is good."""
    workdir = framework.scratch / "nan"
    with spoiled(5):
        framework.run(workdir).must(3, "step 5: not finite: ", "reconstruction_loss", "failed_batch_5.npz")
    require(framework.steps(workdir) == [2, 4], f"steps {framework.steps(workdir)}")
    kept = str(workdir / "failed_batch_5.npz")
    framework.run(workdir, options=("--replay", kept)).must(0, "broke step 5", "weights of step 4", "<- not finite")
    framework.run(workdir).must(0, "continuing at step 4")
    framework.must_equal_reference(workdir)
    return "stopped at step 5, replayed, continued"


def skipped(framework: Framework) -> str:
    """Up to `health.max_skipped` such batches are skipped, as if they had never been drawn; one more stops."""
    from voken_common.data.pipeline import TrainIterator

    workdir = framework.scratch / "skipped"
    allowed = "health.max_skipped=2"
    with spoiled(4, 9):
        framework.run(workdir, allowed).must(0, "1 of at most 2", "2 of at most 2", "failed_batch_4.npz")
    require(framework.steps(workdir)[-1] == STEPS, "it did not reach its end")
    with dropped(TrainIterator, 4, 9):
        framework.run(framework.scratch / "without", allowed).must(0)
    contents = framework.contents(framework.scratch / "without", STEPS)
    must_equal(framework.contents(workdir, STEPS), contents)
    require(int(contents["position"]) == (STEPS + 2) * 8, f"position {contents['position']}")
    # Stopped and continued in the middle, the count goes on.
    again = framework.scratch / "skipped_again"
    with spoiled(4):
        framework.run(again, allowed, "training.steps=6").must(0)
    with spoiled(2):
        framework.run(again, allowed).must(0, "continuing at step 6", "2 of at most 2")
    must_equal(framework.contents(again, STEPS), contents)
    with spoiled(4, 6, 8):
        framework.run(framework.scratch / "skipped_out", allowed).must(3, "after 2 skipped batch(es)")
    return "2 skipped, the third stops"
