"""Record of one published model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Project = Literal["Open-MAGVIT2", "IBQ", "Emu3.5"]
Family = Literal["image tokenizer", "video tokenizer", "generator"]
Metric = Literal["rFID", "rFVD", "PSNR", "SSIM", "LPIPS", "usage", "gFID", "IS"]

_GIB = 2**30


@dataclass(frozen=True)
class Figure:
    """One reported figure.

    Attributes:
        metric: what was measured; `usage` is the fraction of the codebook in use, in [0, 1].
        value: as reported.
        on: data set and size of the images.
    """

    metric: Metric
    value: float
    on: str


@dataclass(frozen=True)
class PublishedModel:
    """One published model.

    Attributes:
        project: the project it belongs to.
        name: its name here, which no other model has.
        family: what it is.
        repository: on the Hugging Face hub, `OWNER/NAME`.
        file: its checkpoint there.
        config: the file that trains it, relative to the project's folder.
        codes: per sub-token: the codebook size; of a generator, what its sub-tokens are chosen from.
        dimension: channels of a code; None for a generator.
        downsampling: pixels per token along one side, after frames per token of a video; None for a generator.
        figures: what its authors report.
        parameters: number of weights, in millions: encoder, decoder and quantizer of a tokenizer (no discriminator),
            the transformer of a generator.
        gibibytes: size of the file, where it is known.
        averages: the file holds averages (EMA) beside the raw weights.
        tokenizer: of a generator: the published tokenizer whose tokens it predicts.
        published_as: its name in its project, where that is another: both projects have an
            `imagenet_conditional_llama_B`.
    """

    project: Project
    name: str
    family: Family
    repository: str
    file: str
    config: str
    codes: tuple[int, ...]
    dimension: int | None
    downsampling: tuple[int, ...] | None
    parameters: float
    figures: tuple[Figure, ...] = ()
    gibibytes: float | None = None
    averages: bool = True
    tokenizer: str | None = None
    published_as: str | None = None

    @property
    def full_name(self) -> str:
        """Its name in its project, after the project."""
        return f"{self.project}/{self.published_as or self.name}"

    @property
    def manifest(self) -> str:
        """Name of the list of every weight in its file, with shapes, among those that the tests compare with."""
        return self.full_name.replace("/", "__") + ".json"

    @property
    def codebook_size(self) -> int:
        """All codes: ids are below this."""
        size = 1
        for codes in self.codes:
            size *= codes
        return size

    @property
    def size(self) -> str:
        """Size of the file for people: as published, or estimated from the weights that it must hold."""
        if self.gibibytes is not None:
            return f"{self.gibibytes:.2f} GiB"
        sets = 2 if self.averages and self.family != "generator" else 1
        return f"about {4e6 * sets * self.parameters / _GIB:.1f} GiB"

    def figure(self, metric: Metric, on: str) -> float:
        """The value of one figure.

        Raises:
            KeyError: it was not reported.
        """
        for figure in self.figures:
            if (figure.metric, figure.on) == (metric, on):
                return figure.value
        known = ", ".join(f"{figure.metric} on {figure.on}" for figure in self.figures)
        raise KeyError(f"{self.full_name}: no {metric} on {on} was reported; there is {known or 'nothing'}")
