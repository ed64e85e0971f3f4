"""Measure the speed from image files to batches: every stage, every source, and a plain torch DataLoader beside them.

    python scripts/benchmark_data.py [--quick] [--workers 2] [--size 500x375] [--target 256]

JPEGs are generated, then read from the page cache, so that decoding and what comes after it is measured, not a disk.
The contenders take turns for several rounds, each with the same number of worker processes; a round skips what was
prepared while a contender waited. Given are medians over the rounds of the images per second, of the processor time
per image of the main process and the workers together, and of ratios within a round. On a busy machine the processor
time is the better guide (`..._by_cpu`): what a program gets done in a second also depends on how many processes it has.

`decode` gives the JPEG as RGB bytes at full size and nothing else; `decode to target` also resizes and crops, which
is all of the work that a pipeline cannot avoid. The last line is one JSON object. Needs Linux (/proc).
"""

import argparse
import itertools
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from voken_common.data import transforms
from voken_common.data.decode import decode_image, open_image
from voken_common.data.workers import keep_freed_memory

_TICKS = os.sysconf("SC_CLK_TCK")


def generate(folder: Path, count: int, size: tuple[int, int]) -> list[str]:
    """Write `count` different JPEGs that compress about as photographs do, in ten class folders."""
    width, height = size
    rng = np.random.default_rng(0)
    grain = rng.normal(0, 9, (2 * height, 2 * width, 1))
    paths = []
    for number in range(count):
        if number % 16 == 0:
            coarse = Image.fromarray(rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8))
            scene = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
        top, left = rng.integers(0, height), rng.integers(0, width)
        pixels = scene + grain[top : top + height, left : left + width]
        path = folder / f"{number % 10}" / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)
        paths.append(str(path))
    return paths


def write_tars(paths: list[str], folder: Path) -> str:
    """Write the same files as a set of tars, indexed as `python -m voken_common.data.tar.prepare` does it."""
    import tarfile

    from voken_common.data.tar.check import CheckOptions
    from voken_common.data.tar.prepare import find_set, prepare_set

    for number, start in enumerate(range(0, len(paths), 1000)):
        (folder / "set").mkdir(parents=True, exist_ok=True)
        with tarfile.open(folder / "set" / f"{number:05}.tar", "w") as tar:
            for path in paths[start : start + 1000]:
                tar.add(path, os.path.basename(path))
    prepare_set(find_set(str(folder / "set")), folder, CheckOptions(), workers=0)
    return str(folder / "set.index")


def write_tfds(paths: list[str], folder: Path) -> None:
    """Write the same files as a TFDS data set in array_record."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()

    class VokenBenchmark(tfds.core.GeneratorBasedBuilder):
        """JPEGs."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            features = tfds.features.FeaturesDict({"image": tfds.features.Image(encoding_format="jpeg")})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, manager: Any) -> Any:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Iterator[Any]:
            for number, path in enumerate(paths):
                yield number, {"image": Path(path).read_bytes()}

    VokenBenchmark(data_dir=str(folder), file_format="array_record").download_and_prepare()


def to_target(data: bytes, target: int) -> np.ndarray:
    """A JPEG resized and cropped, as bytes."""
    return transforms.center_crop(transforms.resize_pillow_image(open_image(data), target, "pil"), target, "pil")


def _decode_files(job: tuple[list[str], int | None]) -> int:
    paths, target = job
    for path in paths:
        data = Path(path).read_bytes()
        decode_image(data) if target is None else to_target(data, target)
    return len(paths)


def decoding(paths: list[str], batch: int, pool: Any, target: int | None) -> Callable[[int], Iterator[int]]:
    """Worker processes that decode, and hand nothing on."""
    start = itertools.count()

    def run(batches: int) -> Iterator[int]:
        jobs = []
        for _ in range(batches):
            first = next(start) * batch % (len(paths) - batch + 1)
            jobs.append((paths[first : first + batch], target))
        return iter(pool.imap_unordered(_decode_files, jobs))

    return run


def pipeline(source: Any, target: int, batch: int, workers: int, **options: Any) -> Iterator[Any]:
    """The pipeline of this project, endless."""
    from voken_common.config.schema.data import DataConfig
    from voken_common.data.pipeline import build_train_iterator

    config = DataConfig(train=source, image_size=target, workers=workers, crop="random", **options)
    return build_train_iterator(config, batch_size_per_process=batch, seed=0)


class TorchFiles:
    """The usual data set of a torch DataLoader: open, resize the short side, crop, float tensor in [-1, 1]."""

    def __init__(self, paths: list[str], target: int):
        self.paths, self.target = paths, target

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        import torch

        with Image.open(self.paths[index]) as image:
            rgb = image.convert("RGB")
        scale = self.target / min(rgb.size)
        rgb = rgb.resize((round(rgb.width * scale), round(rgb.height * scale)), Image.Resampling.BILINEAR)
        left, top = (int(torch.randint(0, side - self.target + 1, ())) for side in rgb.size)
        rgb = rgb.crop((left, top, left + self.target, top + self.target))
        return torch.from_numpy(np.array(rgb)).permute(2, 0, 1).contiguous().float().div_(127.5).sub_(1.0)


def dataloader(paths: list[str], target: int, batch: int, workers: int) -> Iterator[Any]:
    """A torch DataLoader over the files, endless."""
    import torch.utils.data

    loader: Any = torch.utils.data.DataLoader(
        # Its length and [index] are all that a DataLoader asks for; a torch Dataset would import torch above.
        TorchFiles(paths, target),  # type: ignore[arg-type]
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=True,
    )
    return itertools.chain.from_iterable(itertools.repeat(loader))


def children() -> set[int]:
    """Processes that this one has started and that are alive."""
    return {child.pid for child in multiprocessing.active_children() if child.pid is not None}


def processor_seconds(pids: set[int]) -> float:
    """Processor time so far of this process and of those."""
    total = 0.0
    for pid in [os.getpid(), *pids]:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / _TICKS
    return total


def wait_for_rest(patience: float = 60.0) -> None:
    """Until no child works any more: who had the turn before still prepares batches for its next one."""
    end, used = time.perf_counter() + patience, float("inf")
    while used > 2 / _TICKS and time.perf_counter() < end:
        before = processor_seconds(children())
        time.sleep(0.3)
        used = processor_seconds(children()) - before


class Contender:
    """Something that gives batches, and the processes that it started for them."""

    def __init__(self, start: Callable[[], Any], workers: int):
        before = children()
        self.batches = start()
        if not callable(self.batches):
            next(self.batches)
            # The first batch may be there before the last worker is.
            while len(children() - before) < workers:
                time.sleep(0.1)
        self.pids = children() - before

    def take(self, skip: int, count: int, batch: int) -> tuple[float, float]:
        """Images per second and processor milliseconds per image of `count` batches after the first `skip`."""
        wait_for_rest()
        iterator = self.batches(skip + count) if callable(self.batches) else self.batches
        for _ in range(skip):
            next(iterator)
        start, processor = time.perf_counter(), processor_seconds(self.pids)
        for _ in range(count):
            next(iterator)
        seconds, used = time.perf_counter() - start, processor_seconds(self.pids) - processor
        return count * batch / seconds, used * 1e3 / (count * batch)


def single_process(paths: list[str], target: int) -> dict[str, float]:
    """Images per second of each stage in this process, the best of three passes."""
    data = [Path(path).read_bytes() for path in paths]
    pixels = [np.zeros((target, target, 3), np.uint8)] * 32
    stages: dict[str, tuple[Callable[[Any], Any], list[Any], int]] = {
        "read": (lambda path: Path(path).read_bytes(), paths, 1),
        "decode": (decode_image, data, 1),
        "decode to target": (lambda item: to_target(item, target), data, 1),
        "batch to float": (transforms.to_float, [np.stack(pixels)] * 4, len(pixels)),
    }
    rates = {}
    for name, (stage, items, images) in stages.items():
        best = float("inf")
        for _ in range(3):
            start = time.perf_counter()
            for item in items:
                stage(item)
            best = min(best, time.perf_counter() - start)
        rates[name] = len(items) * images / best
    return rates


def contend(args: argparse.Namespace, folder: Path) -> dict[str, list[tuple[float, float]]]:
    """All contenders, taking turns."""
    from voken_common.config.schema.data import ImageFolderConfig, TarConfig, TarSetConfig, TFDSConfig

    paths = sorted(str(path) for path in (folder / "files").rglob("*.jpg"))
    batch, workers, target = args.batch, args.workers, args.target
    images = ImageFolderConfig(path=str(folder / "files"))
    sources: dict[str, Any] = {"pipeline, folder": images}
    if not args.no_sources:
        sources["pipeline, tar"] = TarConfig(sets=(TarSetConfig(index=write_tars(paths, folder / "tars")),))
        write_tfds(paths, folder / "tfds")
        names = {"name": "voken_benchmark", "data_dir": str(folder / "tfds"), "label_key": None}
        sources["pipeline, array_record"] = TFDSConfig(split="train", **names)
    count = max(1, args.files // (args.rounds * batch))
    # What Grain (three batches per worker, and two in the main process) and the DataLoader (two) prepare while others
    # have their turn.
    skip = 4 * workers + 4
    results: dict[str, list[tuple[float, float]]] = {}
    # Forked, as on Linux it is by default, and before Grain has threads.
    contenders = {"torch DataLoader": Contender(lambda: dataloader(paths, target, batch, workers), workers)}
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(workers, keep_freed_memory) as full, spawn.Pool(workers, keep_freed_memory) as scaled:
        for name, pool, side in (("decode", full, None), ("decode to target", scaled, target)):
            contenders[name] = Contender(lambda pool=pool, side=side: decoding(paths, batch, pool, side), workers)
            # A pool tells its processes nowhere else.
            contenders[name].pids = {process.pid for process in pool._pool}  # type: ignore[attr-defined]
        for name, source in sources.items():
            contenders[name] = Contender(lambda source=source: pipeline(source, target, batch, workers), workers)
        if args.fast:
            options = {"resize_crop_only": True, "reduced_jpeg_decode": True}
            contenders["pipeline, folder, fast"] = Contender(
                lambda: pipeline(images, target, batch, workers, **options), workers
            )
        for number in range(args.rounds + 1):
            for name, contender in contenders.items():
                # The first round warms up: processes start and caches fill.
                found = contender.take(skip, count if number else 1, batch)
                if number:
                    results.setdefault(name, []).append(found)
        for contender in contenders.values():
            if hasattr(contender.batches, "close"):
                contender.batches.close()
    return results


def ratios(results: dict[str, list[tuple[float, float]]], first: str, second: str) -> tuple[float, float]:
    """Compare two contenders by time and by processor time: medians of the ratios over the rounds."""
    pairs = list(zip(results[first], results[second], strict=True))
    faster = statistics.median(one[0] / two[0] for one, two in pairs)
    return round(faster, 3), round(statistics.median(two[1] / one[1] for one, two in pairs), 3)


def report(args: argparse.Namespace, stages: dict[str, float], results: dict[str, list[tuple[float, float]]]) -> None:
    width, height = args.size
    print(f"\n{args.files} JPEGs of {width}x{height}, target {args.target}, batches of {args.batch}")
    print(f"\n{'stage, one process':32} {'images/s':>10}")
    for name, rate in stages.items():
        print(f"{name:32} {rate:10.0f}")
    print(f"\n{f'{args.workers} worker processes':32} {'images/s':>10} {'CPU ms/image':>13}")
    rates, costs = {}, {}
    for name, found in results.items():
        rates[name] = statistics.median(rate for rate, _ in found)
        costs[name] = statistics.median(cost for _, cost in found)
        print(f"{name:32} {rates[name]:10.0f} {costs[name]:13.2f}")
    ours = "pipeline, folder"
    summary: dict[str, Any] = {
        "files": args.files,
        "size": f"{width}x{height}",
        "target": args.target,
        "workers": args.workers,
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
        "stages": {name: round(rate, 1) for name, rate in stages.items()},
        "images_per_second": {name: round(rate, 1) for name, rate in rates.items()},
        "cpu_ms_per_image": {name: round(cost, 3) for name, cost in costs.items()},
    }
    for other in ("torch DataLoader", "decode", "decode to target"):
        key = f"pipeline_vs_{other.removeprefix('torch ').lower().replace(' ', '_')}"
        summary[key], summary[f"{key}_by_cpu"] = ratios(results, ours, other)
    if args.fast:
        summary["fast_vs_decode"], summary["fast_vs_decode_by_cpu"] = ratios(results, f"{ours}, fast", "decode")
    print(json.dumps(summary))


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    return int(width), int(height)


def main() -> None:
    parser = argparse.ArgumentParser(description="Images per second of each stage, source and of a torch DataLoader.")
    parser.add_argument("--quick", action="store_true", help="few files and rounds: does it run, not how fast")
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--size", type=_size, default=(500, 375), help="of the JPEGs, WIDTHxHEIGHT")
    parser.add_argument("--target", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--fast", action="store_true", help="measure data.resize_crop_only and data.reduced_jpeg_decode, too"
    )
    parser.add_argument(
        "--no-sources", action="store_true", help="the folder only, not the same in tars and array_record"
    )
    args = parser.parse_args()
    if args.quick:
        args.files, args.rounds, args.batch = 320, 2, 16
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = generate(folder / "files", args.files, args.size)
        stages = single_process(paths[:320], args.target)
        report(args, stages, contend(args, folder))


if __name__ == "__main__":
    main()
