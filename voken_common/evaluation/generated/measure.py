"""Measuring generated images against a reference: FID, sFID, Inception Score, precision and recall.

By the ADM evaluator's definitions with its resize (`tensorflow1`), or pytorch-fid's with `half_pixel`. Features of
samples go to disk by shards as those of tokenizers do; features and statistics of a reference are kept in the cache
under the hash of its content, so that they are computed once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from voken_common.checkpoints.downloads import default_cache
from voken_common.errors import UserError
from voken_common.evaluation.engine import Engine
from voken_common.evaluation.generated.references import ReferenceStatistics, read_statistics, write_statistics
from voken_common.evaluation.generated.samples import Samples, open_samples
from voken_common.evaluation.shards import Shards
from voken_common.evaluation.summary import Summary
from voken_common.evaluation.uncertainty import extrapolated_distance
from voken_common.metrics import GaussianStatistics, InceptionScore, Moments, frechet_distance, precision_recall
from voken_common.metrics.resize import Resize

METRICS = ("fid", "sfid", "is", "precision", "recall")
_FEATURES = {"fid": "pool3", "sfid": "spatial"}


class Reference(NamedTuple):
    """Reference that samples are compared with.

    Attributes:
        statistics: of pool_3 and spatial features.
        pool3: features of the images, for precision and recall; None where there are only statistics.
        describe: one line for reports.
        sha256: of the file, or of a folder's pictures.
    """

    statistics: ReferenceStatistics
    pool3: np.ndarray | None
    describe: str
    sha256: str


def measure_samples(
    samples: Samples,
    engine: Engine,
    shards: Shards,
    *,
    resize: Resize,
    batch_size: int,
    report: Callable[[int], Any] = lambda _: None,
) -> None:
    """Measure the shards of this process that are missing: features of every sample."""
    with ThreadPoolExecutor(1, thread_name_prefix="voken-read") as ahead:
        for shard in shards.missing():
            ranks = shards.samples(shard)
            starts = list(range(ranks.start, ranks.stop, batch_size))
            parts: list[dict[str, np.ndarray]] = []
            waiting = ahead.submit(samples.read, starts[0], min(starts[0] + batch_size, ranks.stop))
            for number, start in enumerate(starts):
                images = waiting.result()
                if number + 1 < len(starts):
                    following = starts[number + 1]
                    waiting = ahead.submit(samples.read, following, min(following + batch_size, ranks.stop))
                filled = np.concatenate([images, np.repeat(images[-1:], batch_size - len(images), axis=0)])
                found = engine.inception(filled, resize)._asdict()
                kept = {name: np.asarray(value)[: len(images)] for name, value in found.items()}
                parts.append(kept | {"rank": np.arange(start, start + len(images))})
                report(len(images))
            shards.write(shard, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def statistics_of(shards: Shards, about: dict[str, Any]) -> ReferenceStatistics:
    """Gaussians of measured samples, one shard in memory at a time."""
    sums: dict[str, GaussianStatistics] = {}
    for shard in shards:
        for kind, name in _FEATURES.items():
            sums.setdefault(kind, GaussianStatistics(shard[name].shape[1])).update(shard[name])
    moments = {kind: Moments(found.mean, found.covariance) for kind, found in sums.items()}
    return ReferenceStatistics(moments["fid"], moments["sfid"], sums["fid"].count, about)


def load_reference(
    path: str | Path,
    engine: Engine,
    *,
    resize: Resize,
    batch_size: int,
    with_features: bool,
    cache_dir: str | Path | None = None,
    report: Callable[[str], Any] = lambda _: None,
) -> Reference:
    """Statistics of a reference, and its features where they are needed and can be had.

    Args:
        path: an .npz of statistics (ours, pytorch-fid's), of images, of both (the ADM evaluator's), or a folder of
            pictures.
        engine: computes features that are not in the cache.
        resize: of Inception; statistics that say they were computed by another are refused.
        batch_size: images per call of the network.
        with_features: for precision and recall.
        cache_dir: instead of the user's cache.
        report: told in words what is computed.

    Raises:
        UserError: no such reference, or one of other conventions.
    """
    path = Path(path)
    known = None if path.is_dir() else read_statistics(path)
    if known is not None:
        _check_conventions(path, known, resize)
    digest = _content_hash(path)
    has_images = path.is_dir() or _holds_images(path)
    if known is not None and not (with_features and has_images):
        return Reference(known, None, f"{path.name} (statistics)", digest)
    samples = open_samples(path)
    folder = (Path(cache_dir) if cache_dir is not None else default_cache()) / "features"
    weights = engine.weights.inception().sha256
    shards = Shards(
        folder / f"{digest[:24]}-{resize}-{weights[:12]}",
        {"reference": digest, "resize": resize, "inception": weights},
        total=len(samples),
        size=1024,
    )
    if shards.missing():
        report(f"features of {samples.describe()}, kept in {shards.folder}")
        measure_samples(samples, engine, shards, resize=resize, batch_size=batch_size)
    about = {"data": samples.describe(), "resize": resize, "inception": weights}
    statistics = known if known is not None else statistics_of(shards, about)
    pool3 = np.concatenate([shard["pool3"] for shard in shards]) if with_features else None
    return Reference(statistics, pool3, samples.describe(), digest)


def summarize_samples(
    shards: Shards, reference: Reference | None, metrics: tuple[str, ...], *, infinity: bool = False
) -> Summary:
    """Sum up measured samples.

    Precision and recall need the features of all samples and of the reference at once: 8 kB per image.
    """
    values: dict[str, float] = {}
    notes: dict[str, str] = {}
    found = statistics_of(shards, {}) if shards.total > 1 else None
    if reference is not None and found is not None:
        for kind in ("fid", "sfid"):
            expected = getattr(reference.statistics, kind)
            if kind in metrics and expected is not None:
                values[kind] = frechet_distance(expected, getattr(found, kind))
            elif kind in metrics:
                notes[kind] = "the reference has no statistics of it"
    if "is" in metrics:
        score = InceptionScore(shards.read(0, "logits")["logits"].shape[1])
        for shard in shards:
            score.update_logits(shard["logits"])
        values["inception_score"], values["inception_score_std"] = score.result()
    if reference is not None and {"precision", "recall"} & set(metrics):
        if reference.pool3 is None:
            notes["precision"] = "the reference has statistics only, no images"
        else:
            pool3 = np.concatenate([shard["pool3"] for shard in shards])
            manifold = precision_recall(reference.pool3, pool3)
            values |= {name: getattr(manifold, name) for name in ("precision", "recall") if name in metrics}
    if infinity and "fid" in values and reference is not None:
        values["fid_infinity"] = extrapolated_distance(shards, shards.total, reference=reference.statistics.fid)
    return Summary(values, {}, shards.total, {}, None, notes)


def save_statistics(path: str | Path, reference: Reference) -> None:
    """Write the statistics of a reference to share them; see `references`."""
    about = {**(reference.statistics.about or {}), "source": reference.describe}
    write_statistics(path, dataclasses.replace(reference.statistics, about=about))


def _check_conventions(path: Path, known: ReferenceStatistics, resize: Resize) -> None:
    found = (known.about or {}).get("resize")
    if found is not None and found != resize:
        raise UserError(
            f"{path} was computed with resize {found}, samples are measured with {resize}: distances between the two "
            f"measure the resize. Use --inception-resize {found}, or make the statistics anew"
        )


def _holds_images(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return "arr_0.npy" in archive.namelist()


def _content_hash(path: Path) -> str:
    """Return the sha256 of a file, or of the names and contents of a folder's pictures."""
    digest = hashlib.sha256()
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    for file_path in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(str(file_path.relative_to(path)).encode("utf-8", "surrogateescape"))
        with file_path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
