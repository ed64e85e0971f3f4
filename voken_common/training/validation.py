"""Result of validating a tokenizer on held-out images, and its totals over batches and processes.

Shape letters: b = rows of a batch, k = codes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from voken_common.evaluation.validation import MetricTotals
from voken_common.metrics import Average, bounded_psnr, codebook_perplexity, codebook_usage
from voken_common.training.collapse import CodeUse
from voken_common.training.log import RunLog
from voken_common.visual import clip_pairs, clip_strips, codebook_usage_plot, reconstruction_grid


@dataclasses.dataclass(frozen=True)
class Validation:
    """Metrics over all images, the first few of them with their reconstructions (in [-1, 1]), and code counts."""

    metrics: dict[str, float]
    originals: np.ndarray
    reconstructions: np.ndarray
    counts: np.ndarray
    numbers: tuple[int, ...] = ()
    """Of the shown images in their source, where it is known."""


class ValidationTotals:
    """Sums over batches; padding and undecodable images (mask 0) are left out of every mean.

    Args:
        pictures: how many images are kept to be shown.
        extra: of the metrics that `validation.metrics` asks for.
    """

    def __init__(self, pictures: int, extra: MetricTotals | None = None):
        self._pictures, self._extra = pictures, extra or MetricTotals((), None)
        self._averages: dict[str, Average] = {}
        self._shown: list[tuple[np.ndarray, np.ndarray]] = []
        self._numbers: list[int] = []

    def add(
        self,
        batch: Mapping[str, np.ndarray],
        reconstructions: Float[np.ndarray, "b *s c"],
        values: Mapping[str, Float[np.ndarray, " b"]],
    ) -> None:
        """Take one batch: its images or clips and mask, their reconstructions, and metrics per row; PSNR is added here.

        A clip's PSNR is the mean over its frames. What is exactly reconstructed counts with
        `voken_common.metrics.HIGHEST_PSNR`, so that the mean stays finite.
        """
        present = batch["mask"] > 0
        if not present.any():
            return
        originals = batch["video" if "video" in batch else "image"]
        self._extra.add(originals, reconstructions, present)
        originals, reconstructions = originals[present], reconstructions[present]
        for name, value in values.items():
            self._averages.setdefault(name, Average()).update(np.asarray(value)[present])
        self._averages.setdefault("psnr", Average()).update(_psnr(originals, reconstructions))
        if sum(len(shown) for shown, _ in self._shown) < self._pictures:
            self._shown.append((originals, reconstructions))
            if "number" in batch:
                self._numbers += [int(number) for number in batch["number"][present]]

    def merge(self, other: ValidationTotals) -> None:
        """Take the sums of another process; its pictures are not taken."""
        for name, average in other._averages.items():
            self._averages.setdefault(name, Average()).merge(average)
        self._extra.merge(other._extra)

    def without_pictures(self) -> ValidationTotals:
        """The sums alone, to be sent to other processes."""
        sums = ValidationTotals(0, self._extra.sums())
        for name, average in self._averages.items():
            sums._averages.setdefault(name, Average()).merge(average)
        return sums

    def result(self, counts: Int[np.ndarray, " k"]) -> Validation:
        """Means, pictures, and usage and perplexity of the codebook from the counts of its codes."""
        metrics = {name: average.mean for name, average in self._averages.items()} | self._extra.result()
        metrics["codebook_usage"] = float(codebook_usage(counts))
        metrics["codebook_perplexity"] = float(codebook_perplexity(counts))
        shown = zip(*self._shown, strict=True) if self._shown else ([np.empty((0, 1, 1, 3))],) * 2
        originals, reconstructions = (np.concatenate(parts)[: self._pictures] for parts in shown)
        return Validation(metrics, originals, reconstructions, counts, tuple(self._numbers[: self._pictures]))


def _psnr(originals: np.ndarray, reconstructions: np.ndarray) -> Float[np.ndarray, " b"]:
    if originals.ndim == 4:
        return bounded_psnr(originals, reconstructions)
    frames = bounded_psnr(
        originals.reshape(-1, *originals.shape[2:]), reconstructions.reshape(-1, *originals.shape[2:])
    )
    return frames.reshape(originals.shape[:2]).mean(axis=1)


def report(log: RunLog, step: int, result: Validation, images: int, name: Callable[[int], str] | None = None) -> None:
    """Scalars, a line above the progress bar, and the pictures of one validation.

    Args:
        log: of the run.
        step: after which it took place.
        result: what was found.
        images: how many images or clips were evaluated.
        name: of an image by its number in the source, for the picture.
    """
    log.scalars(step, result.metrics, prefix="validation/")
    what = "clips" if result.originals.ndim == 5 else "images"
    use = CodeUse(int(np.count_nonzero(result.counts)), result.counts.size, int(result.counts.sum()))
    allowed = f" (of {use.possible:.4g} that {use.tokens} tokens can use)"
    texts = [f"{name} {v:.4g}{allowed if name == 'codebook_usage' else ''}" for name, v in result.metrics.items()]
    text = "  ".join(texts)
    log.message(f"step {step}  validation (EMA, {images} {what}):  {text}")
    warning = log.collapse.validated(step, result.counts) if log.collapse else None
    if warning:
        log.warning(warning)
    if result.originals.ndim == 5:
        log.picture(step, "reconstructions", clip_strips(result.originals, result.reconstructions))
        log.clips(step, "clips", clip_pairs(result.originals, result.reconstructions))
    elif len(result.originals):
        known = name is not None and len(result.numbers) == len(result.originals)
        names = [Path(name(number)).name for number in result.numbers] if name is not None and known else None
        log.picture(step, "reconstructions", reconstruction_grid(result.originals, result.reconstructions, names=names))
    log.picture(step, "codebook_usage", codebook_usage_plot(result.counts))
