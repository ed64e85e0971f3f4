"""Measuring an image tokenizer over a data set: per image and per shard, to be summed up afterwards.

The networks work on batches of one shape; PSNR, SSIM and the writing of shards happen in a thread beside them. Memory
does not grow with the number of images: a shard's measurements go to disk when it is finished.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from voken_common.checkpoints.lpips_weights import Net
from voken_common.data.transforms import to_float
from voken_common.evaluation.batches import Batch, Row, ahead, batches
from voken_common.evaluation.engine import ArrayTokenizer, Engine
from voken_common.evaluation.shards import Shards
from voken_common.metrics import bounded_psnr, ssim
from voken_common.metrics.resize import Resize, resize_bilinear
from voken_common.pixels import pad_to_multiple

METRICS = ("rfid", "is", "psnr", "ssim", "lpips_alex", "lpips_vgg", "usage")
"""What can be asked for; usage brings perplexity, bits per pixel and the ids' histogram."""
Found = dict[str, np.ndarray]
_NETS: dict[str, Net] = {"lpips_alex": "alex", "lpips_vgg": "vgg"}
_SSIM_LEAST = 7
_INCEPTION_SIDE = 299


@dataclass(frozen=True)
class ImageMeasurement:
    """Measures of every image.

    Attributes:
        metrics: of `METRICS`.
        original: at the images' own resolution, padded with grey to multiples of `multiple` and cropped back; there is
            no LPIPS then, as published.
        multiple: of the padding.
        resize: of FID's Inception.
        with_originals: the originals go through Inception too; not where their statistics are known.
        batch_size: images per call of the networks.
    """

    metrics: tuple[str, ...] = METRICS
    original: bool = False
    multiple: int = 16
    resize: Resize = "half_pixel"
    with_originals: bool = True
    batch_size: int = 32

    def __post_init__(self) -> None:
        if unknown := [name for name in self.metrics if name not in METRICS]:
            raise ValueError(f"metric {unknown[0]!r} is not known; expected some of {', '.join(METRICS)}")
        if self.original and (of_crops := [name for name in self.metrics if name in _NETS]):
            raise ValueError(f"{of_crops[0]} is not measured at original resolution: leave it out")
        if self.batch_size < 1:
            raise ValueError(f"batch size {self.batch_size}: expected at least 1")

    @property
    def with_inception(self) -> bool:
        """Anything of Inception is asked for."""
        return bool({"rfid", "is"} & set(self.metrics))

    def settings(self) -> dict[str, Any]:
        """Return the conventions that decide the numbers, as plain values."""
        return asdict(self)


def measure(
    tokenizer: ArrayTokenizer,
    engine: Engine,
    loader: Callable[[int], Row],
    shards: Shards,
    measurement: ImageMeasurement,
    report: Callable[[int], Any] = lambda _: None,
) -> list[str]:
    """Measure the shards of this process that are missing.

    Args:
        tokenizer, engine: of one framework.
        loader: from the place in the evaluation order to a row: image uint8 (H, W, 3), mask, bad.
        shards: where the measurements go.
        measurement: what is measured.
        report: told how many images were measured, batch by batch.

    Returns:
        what is said about images that could not be decoded.
    """
    return run_shards(
        shards,
        lambda ranks: _batches(loader, ranks, measurement),
        lambda batch: _on_device(tokenizer, engine, batch, measurement),
        _on_host,
        report,
    )


def run_shards(
    shards: Shards,
    batches_of: Callable[[range], Iterator[Batch]],
    on_device: Callable[[Batch], Found],
    on_host: Callable[[Batch, Found], Found],
    report: Callable[[int], Any],
) -> list[str]:
    """Measure missing shards: `on_device` here, `on_host` and writing in a thread beside it.

    Args:
        shards: where the measurements go.
        batches_of: the samples of a shard.
        on_device: what the networks say about a batch.
        on_host: the measurements that are kept of it, one row per sample that counts.
        report: told how many samples were measured, batch by batch.

    Returns:
        what is said about samples that could not be decoded.
    """
    bad: list[str] = []
    with ThreadPoolExecutor(1, thread_name_prefix="voken-measure") as beside:
        written: Future[None] | None = None
        for shard in shards.missing():
            parts: list[Future[dict[str, np.ndarray]]] = []
            for batch in batches_of(shards.samples(shard)):
                bad += batch.bad
                parts.append(beside.submit(on_host, batch, on_device(batch)))
                # One batch waits for the host while the device works on the next: not more, or memory would grow.
                if len(parts) > 1:
                    parts[-2].result()
                report(int(batch.present.sum()))
            if written is not None:
                written.result()
            written = beside.submit(_write, shards, shard, parts)
        if written is not None:
            written.result()
    return bad


def reconstruct_ranks(
    tokenizer: ArrayTokenizer, loader: Callable[[int], Row], ranks: list[int], measurement: ImageMeasurement
) -> list[tuple[UInt8[np.ndarray, "h w 3"], Float[np.ndarray, "h w 3"]]]:
    """Original and reconstruction of single images, for pictures; computed in the same batches as when measured."""
    pairs = []
    for rank in ranks:
        image = loader(rank)["image"]
        copies = 1 if measurement.original else measurement.batch_size
        _, reconstruction = _reconstruct(tokenizer, to_float(np.repeat(image[None], copies, axis=0)), measurement)
        pairs.append((image, reconstruction[0]))
    return pairs


def _batches(loader: Callable[[int], Row], ranks: range, measurement: ImageMeasurement) -> Iterator[Batch]:
    threads = max(2, min(16, os.cpu_count() or 2))
    if not measurement.original:
        yield from batches(loader, ranks, batch_size=measurement.batch_size, threads=threads)
        return
    for rank, row in zip(ranks, ahead(loader, ranks, threads=threads, depth=2 * threads), strict=True):
        bad = [str(image.reason) for image in row["bad"]]
        yield Batch(np.array([rank]), row["image"][None], np.array([row["mask"] > 0]), bad)


def _reconstruct(
    tokenizer: ArrayTokenizer, images: Float[np.ndarray, "B H W 3"], measurement: ImageMeasurement
) -> tuple[np.ndarray, np.ndarray]:
    """Ids and reconstructions in float32, in [-1, 1]."""
    padded, region = pad_to_multiple(images, measurement.multiple)
    ids = np.asarray(tokenizer.encode(padded))
    decoded = np.asarray(tokenizer.decode(ids), np.float32)
    return ids, region.crop(np.clip(decoded, -1, 1))


def _on_device(
    tokenizer: ArrayTokenizer, engine: Engine, batch: Batch, measurement: ImageMeasurement
) -> dict[str, np.ndarray]:
    """Run the networks on a batch, padding rows included; a batch without any image is skipped."""
    if not batch.present.any():
        return {}
    images = to_float(batch.pixels)
    ids, reconstructions = _reconstruct(tokenizer, images, measurement)
    found = {"reconstruction": reconstructions, "ids": ids}
    for metric, net in _NETS.items():
        if metric in measurement.metrics:
            found[metric] = engine.lpips(net, images, reconstructions)
    if measurement.with_inception:
        features = engine.inception(_for_inception(reconstructions, measurement), measurement.resize)
        found |= {"pool3": features.pool3, "logits": features.logits}
        if measurement.with_originals:
            found["original_pool3"] = engine.inception(_for_inception(images, measurement), measurement.resize).pool3
    return found


def _for_inception(images: np.ndarray, measurement: ImageMeasurement) -> np.ndarray:
    """At original resolution every image has a size of its own: resized here, so that one program takes them all."""
    if not measurement.original or measurement.resize != "half_pixel":
        return images
    return resize_bilinear(images, _INCEPTION_SIDE, measurement.resize)


def _on_host(batch: Batch, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The measurements of the rows that count, PSNR and SSIM among them."""
    if not found:
        return {}
    present = batch.present
    kept = {name: np.asarray(value)[present] for name, value in found.items()}
    reconstructions, originals = kept.pop("reconstruction"), batch.pixels[present]
    kept["rank"] = batch.ranks[present]
    kept["psnr"] = bounded_psnr(originals, reconstructions)
    small = min(originals.shape[1:3]) < _SSIM_LEAST
    kept["ssim"] = np.full(len(originals), np.nan) if small else ssim(originals, reconstructions)
    kept["pixels"] = np.full(len(originals), originals.shape[1] * originals.shape[2], np.int64)
    ids = kept.pop("ids").reshape(len(originals), -1)
    kept["tokens"] = np.full(len(originals), ids.shape[1], np.int64)
    kept["code"], kept["code_count"] = np.unique(ids, return_counts=True)
    return kept


def _write(shards: Shards, shard: int, parts: list[Future[dict[str, np.ndarray]]]) -> None:
    """Join the batches of a shard and keep them."""
    results = [found for part in parts if (found := part.result())]
    joined = {name: np.concatenate([found[name] for found in results]) for name in (results[0] if results else ())}
    if joined:
        codes, where = np.unique(joined["code"], return_inverse=True)
        counts = np.zeros(len(codes), np.int64)
        np.add.at(counts, where, joined["code_count"])
        joined |= {"code": codes, "code_count": counts}
    shards.write(shard, joined or {"rank": np.zeros(0, np.int64)})
