"""The published models and the figures their authors report (Open-MAGVIT2, Luo et al., 2024; IBQ, Shi et al., 2024).

`MODELS` is the record; `find` looks a model up by any of its names. Where a model has a `config`, that file trains it.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Project = Literal["Open-MAGVIT2", "IBQ"]
Family = Literal["image tokenizer", "video tokenizer", "generator"]
Metric = Literal["rFID", "rFVD", "PSNR", "LPIPS", "usage", "gFID", "IS"]

_IMAGENET = "ImageNet 256x256"
_COCO = "COCO 256x256"


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
        project: which of the two projects it belongs to.
        name: its name there.
        family: what it is.
        config: the file that trains it, relative to the project's folder; None where there is none yet.
        figures: what its authors report.
        parameters: reported number of weights, in millions: encoder, decoder and quantizer of a tokenizer (no
            discriminator), the transformer of a generator; None where nothing is reported.
        tokenizer: of a generator: the published tokenizer whose tokens it predicts.
    """

    project: Project
    name: str
    family: Family
    config: str | None
    figures: tuple[Figure, ...]
    parameters: float | None = None
    tokenizer: str | None = None

    @property
    def full_name(self) -> str:
        """Name that no other model has: both projects have an `imagenet_conditional_llama_B`."""
        return f"{self.project}/{self.name}"

    def figure(self, metric: Metric, on: str) -> float:
        """The value of one figure.

        Raises:
            KeyError: it was not reported.
        """
        for figure in self.figures:
            if (figure.metric, figure.on) == (metric, on):
                return figure.value
        known = ", ".join(f"{figure.metric} on {figure.on}" for figure in self.figures)
        raise KeyError(f"{self.full_name}: no {metric} on {on} was reported; there is {known}")


def _lfq(name: str, config: str, *figures: Figure, parameters: float | None = None) -> PublishedModel:
    path = f"configs/open_magvit2/{config}.yaml"
    return PublishedModel("Open-MAGVIT2", name, "image tokenizer", path, figures, parameters)


def _ibq(codes: int, fid: float, lpips: float, usage: float) -> PublishedModel:
    figures = (
        Figure("rFID", fid, _IMAGENET),
        Figure("LPIPS", lpips, _IMAGENET),
        Figure("usage", usage, _IMAGENET),
    )
    config = f"configs/ibq/imagenet_{codes}.yaml"
    return PublishedModel("IBQ", f"imagenet_ibqgan_{codes}", "image tokenizer", config, figures)


def _ibq_pretrained(codes: int, coco: float, imagenet: float) -> PublishedModel:
    figures = (Figure("rFID", coco, _COCO), Figure("rFID", imagenet, _IMAGENET))
    config = f"configs/ibq/pretrain_{codes}.yaml"
    return PublishedModel("IBQ", f"pretrain_ibqgan_{codes}", "image tokenizer", config, figures)


def _generator(project: Project, size: str, parameters: float, fid: float, score: float) -> PublishedModel:
    figures = (Figure("gFID", fid, _IMAGENET), Figure("IS", score, _IMAGENET))
    folder, tokenizer = {
        "IBQ": ("ibq", "imagenet_ibqgan_16384"),
        "Open-MAGVIT2": ("open_magvit2", "imagenet_lfqgan_256_L"),
    }[project]
    path, name = f"configs/{folder}/generator_{size}.yaml", f"imagenet_conditional_llama_{size}"
    return PublishedModel(project, name, "generator", path, figures, parameters, tokenizer)


MODELS: tuple[PublishedModel, ...] = (
    _lfq(
        "imagenet_lfqgan_256_L",
        "imagenet_256",
        Figure("rFID", 1.17, _IMAGENET),
        Figure("PSNR", 21.90, _IMAGENET),
        Figure("usage", 1.0, _IMAGENET),
        parameters=115.1,
    ),
    _lfq(
        "imagenet_lfqgan_128_L",
        "imagenet_128",
        Figure("rFID", 1.18, "ImageNet 128x128"),
        Figure("rFID", 0.34, _IMAGENET),
    ),
    _lfq(
        "pretrain_lfqgan_256_16384",
        "pretrain_256_16384",
        Figure("rFID", 7.93, _COCO),
        Figure("rFID", 2.55, _IMAGENET),
    ),
    _lfq(
        "pretrain_lfqgan_256_262144",
        "pretrain_256_262144",
        Figure("rFID", 6.76, _COCO),
        Figure("rFID", 1.67, _IMAGENET),
        Figure("rFID", 5.10, "COCO original size"),
        Figure("rFID", 0.78, "ImageNet original size"),
    ),
    PublishedModel(
        "Open-MAGVIT2",
        "ucf101_lfqgan_128_L",
        "video tokenizer",
        None,
        (Figure("rFVD", 16.0, "UCF-101 17x128x128"),),
        370.5,
    ),
    _ibq(1024, 2.24, 0.2580, 0.99),
    _ibq(8192, 1.87, 0.2437, 0.98),
    _ibq(16384, 1.37, 0.2235, 0.96),
    _ibq(262144, 1.00, 0.2030, 0.84),
    _ibq_pretrained(16384, 7.67, 2.06),
    _ibq_pretrained(262144, 6.79, 1.53),
    _generator("Open-MAGVIT2", "B", 343.6, 3.08, 258.26),
    _generator("Open-MAGVIT2", "L", 804.4, 2.51, 271.70),
    _generator("Open-MAGVIT2", "XL", 1486.7, 2.33, 271.77),
    _generator("IBQ", "B", 343.0, 2.88, 254.73),
    _generator("IBQ", "L", 649.6, 2.45, 267.48),
    _generator("IBQ", "XL", 1076.1, 2.14, 278.99),
    _generator("IBQ", "XXL", 2063.3, 2.05, 286.73),
)


def config_file(model: PublishedModel) -> Path:
    """The file that trains a model; `config` of the model must not be None.

    Raises:
        FileNotFoundError: this installation has no configurations.
    """
    assert model.config is not None, f"{model.full_name} has no configuration yet"
    package = Path(__file__).parents[1]
    # An installed package carries them inside; in the source tree they lie beside it.
    places = [package / model.config, package.parent / model.config]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(f"no configuration of {model.full_name}; looked for {' and '.join(map(str, places))}")


def find(name: str) -> PublishedModel:
    """The model called `name`, or `PROJECT/NAME` where both projects have one of that name.

    Raises:
        KeyError: no model, or more than one, is called so; the message names the nearest ones.
    """
    found = [model for model in MODELS if name in (model.name, model.full_name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise KeyError(f"{name!r} is in both projects: say {' or '.join(model.full_name for model in found)}")
    names = {known: model for model in MODELS for known in (model.name, model.full_name)}
    near = dict.fromkeys(names[known].full_name for known in difflib.get_close_matches(name, names, n=4))
    hint = f"did you mean {' or '.join(near)}?" if near else "known are " + ", ".join(m.full_name for m in MODELS)
    raise KeyError(f"no published model is called {name!r}; {hint}")
