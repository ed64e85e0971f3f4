"""The published models and the figures their authors report (Open-MAGVIT2, Luo et al., 2024; IBQ, Shi et al., 2024).

`MODELS` is the record; `find` looks a model up by any of its names, `in_repository` by where it is published. The
`config` of a model is the file that trains it.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from voken_common.published.entry import Family, Figure, Metric, Project, PublishedModel

__all__ = ["MODELS", "Family", "Figure", "Metric", "Project", "PublishedModel", "config_file", "find", "in_repository"]

_OWNER = "TencentARC"
_IMAGENET, _IMAGENET_128 = "ImageNet 256x256", "ImageNet 128x128"
_COCO = "COCO 256x256"
_ORIGINAL = ("COCO original size", "ImageNet original size")
_LFQ_CODES = 2**18


def _quality(on: str, fid: float, psnr: float, ssim: float | None = None) -> tuple[Figure, ...]:
    figures = (Figure("rFID", fid, on), Figure("PSNR", psnr, on))
    return figures if ssim is None else (*figures, Figure("SSIM", ssim, on))


def _lfq(
    name: str,
    config: str,
    place: tuple[str, str],
    parameters: float,
    *figures: Figure,
    bits: int = 18,
    downsampling: int = 16,
) -> PublishedModel:
    return PublishedModel(
        "Open-MAGVIT2",
        name,
        "image tokenizer",
        f"{_OWNER}/{place[0]}",
        place[1],
        f"configs/open_magvit2/{config}.yaml",
        (2**bits,),
        bits,
        (downsampling,),
        parameters,
        figures,
    )


def _ibq_tokenizer(
    name: str, codes: int, place: tuple[str, str], parameters: float, *figures: Figure
) -> PublishedModel:
    config = "configs/ibq/" + name.replace("_ibqgan", "") + ".yaml"
    repository = f"{_OWNER}/{place[0]}"
    return PublishedModel(
        "IBQ", name, "image tokenizer", repository, place[1], config, (codes,), 256, (16,), parameters, figures
    )


def _ibq(codes: int, parameters: float, fid: float, lpips: float, usage: float) -> PublishedModel:
    figures = (Figure("rFID", fid, _IMAGENET), Figure("LPIPS", lpips, _IMAGENET), Figure("usage", usage, _IMAGENET))
    place = (f"IBQ-Tokenizer-{codes}", f"imagenet256_{codes}.ckpt")
    return _ibq_tokenizer(f"imagenet_ibqgan_{codes}", codes, place, parameters, *figures)


def _ibq_pretrained(codes: int, parameters: float, *figures: Figure) -> PublishedModel:
    place = (f"IBQ-Tokenizer-{codes}-Pretrain", f"IBQ_pretrain_{codes}.ckpt")
    return _ibq_tokenizer(f"pretrain_ibqgan_{codes}", codes, place, parameters, *figures)


def _generator(project: Project, size: str, parameters: float, fid: float, score: float) -> PublishedModel:
    figures = (Figure("gFID", fid, _IMAGENET), Figure("IS", score, _IMAGENET))
    ibq = project == "IBQ"
    family, tokenizer = ("ibq", "imagenet_ibqgan_16384") if ibq else ("open_magvit2", "imagenet_lfqgan_256_L")
    return PublishedModel(
        project,
        f"{family}_generator_{size}",
        "generator",
        f"{_OWNER}/" + (f"IBQ-AR-{size}" if ibq else f"Open-MAGVIT2-AR-{size}-256-resolution"),
        f"AR_256_{size}.ckpt",
        f"configs/{family}/generator_{size}.yaml",
        (16384,) if ibq else (64, 4096),
        None,
        None,
        parameters,
        figures,
        averages=False,
        tokenizer=tokenizer,
        published_as=f"imagenet_conditional_llama_{size}",
    )


MODELS: tuple[PublishedModel, ...] = (
    _lfq(
        "imagenet_lfqgan_256_L",
        "imagenet_256",
        ("Open-MAGVIT2-Tokenizer-256-resolution", "imagenet_256_L.ckpt"),
        115.1,
        *_quality(_IMAGENET, 1.17, 21.90),
        Figure("usage", 1.0, _IMAGENET),
    ),
    _lfq(
        "imagenet_lfqgan_128_L",
        "imagenet_128",
        ("Open-MAGVIT2-Tokenizer-128-resolution", "imagenet_128_L.ckpt"),
        112.0,
        *_quality(_IMAGENET_128, 1.18, 25.08),
        Figure("usage", 1.0, _IMAGENET_128),
        *_quality(_IMAGENET, 0.34, 26.19),
        Figure("usage", 1.0, _IMAGENET),
        downsampling=8,
    ),
    _lfq(
        "pretrain_lfqgan_256_16384",
        "pretrain_256_16384",
        ("Open-MAGVIT2-Tokenizer-16384-Pretrain", "pretrain256_16384.ckpt"),
        115.1,
        *_quality(_COCO, 7.93, 22.21, 0.62),
        *_quality(_IMAGENET, 2.55, 22.21, 0.62),
        *_quality(_ORIGINAL[0], 6.65, 21.61, 0.57),
        *_quality(_ORIGINAL[1], 1.39, 21.74, 0.56),
        bits=14,
    ),
    _lfq(
        "pretrain_lfqgan_256_262144",
        "pretrain_256_262144",
        ("Open-MAGVIT2-Tokenizer-262144-Pretrain", "pretrain256_262144.ckpt"),
        115.1,
        *_quality(_COCO, 6.76, 22.31, 0.65),
        *_quality(_IMAGENET, 1.67, 22.70, 0.64),
        *_quality(_ORIGINAL[0], 5.10, 22.18, 0.60),
        *_quality(_ORIGINAL[1], 0.78, 22.24, 0.59),
    ),
    _lfq(
        "imagenet_lfqgan_256_B",
        "imagenet_256_2024",
        ("Open-MAGVIT2", "imagenet_256_B.ckpt"),
        65.5,
        *_quality(_IMAGENET, 1.53, 21.53),
        Figure("usage", 1.0, _IMAGENET),
    ),
    _lfq(
        "imagenet_lfqgan_128_B",
        "imagenet_128_2024",
        ("Open-MAGVIT2", "imagenet_128_B.ckpt"),
        63.6,
        *_quality(_IMAGENET_128, 1.56, 24.45),
        Figure("usage", 1.0, _IMAGENET_128),
        downsampling=8,
    ),
    PublishedModel(
        "Open-MAGVIT2",
        "ucf101_lfqgan_128_L",
        "video tokenizer",
        f"{_OWNER}/Open-MAGVIT2-Tokenizer-262144-Video",
        "video_128_262144.ckpt",
        "configs/open_magvit2/ucf101_128.yaml",
        (_LFQ_CODES,),
        18,
        (4, 8, 8),
        370.5,
        (Figure("rFVD", 16.0, "UCF-101 17x128x128"),),
        gibibytes=2.76,
    ),
    _ibq(1024, 107.0, 2.24, 0.2580, 0.99),
    _ibq(8192, 108.9, 1.87, 0.2437, 0.98),
    _ibq(16384, 111.0, 1.37, 0.2235, 0.96),
    _ibq(262144, 173.9, 1.00, 0.2030, 0.84),
    _ibq_pretrained(16384, 111.0, *_quality(_COCO, 7.67, 21.58, 0.62), *_quality(_IMAGENET, 2.06, 22.01, 0.61)),
    _ibq_pretrained(262144, 173.9, *_quality(_COCO, 6.79, 22.28, 0.65), *_quality(_IMAGENET, 1.53, 22.69, 0.64)),
    PublishedModel(
        "Emu3.5",
        "emu3_5_ibq_131072",
        "image tokenizer",
        "BAAI/Emu3.5-VisionTokenizer",
        "model.ckpt",
        "configs/emu3_5/vision_tokenizer.yaml",
        (131072,),
        256,
        (16,),
        455.3,
        averages=False,
        published_as="VisionTokenizer",
    ),
    _generator("Open-MAGVIT2", "B", 343.6, 3.08, 258.26),
    _generator("Open-MAGVIT2", "L", 804.4, 2.51, 271.70),
    _generator("Open-MAGVIT2", "XL", 1486.7, 2.33, 271.77),
    _generator("IBQ", "B", 343.0, 2.88, 254.73),
    _generator("IBQ", "L", 649.6, 2.45, 267.48),
    _generator("IBQ", "XL", 1076.1, 2.14, 278.99),
    _generator("IBQ", "XXL", 2063.3, 2.05, 286.73),
)


def config_file(model: PublishedModel) -> Path:
    """The file that trains a model.

    Raises:
        FileNotFoundError: this installation has no such configuration.
    """
    package = Path(__file__).parents[1]
    # An installed package carries them inside; in the source tree they lie beside it.
    places = [package / model.config, package.parent / model.config]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(f"no configuration of {model.name}; looked for {' and '.join(map(str, places))}")


def has_config(model: PublishedModel) -> bool:
    """True if this version can build the model's network."""
    try:
        return config_file(model).is_file()
    except FileNotFoundError:
        return False


def find(name: str) -> PublishedModel:
    """The model called `name` here, in its project (`PROJECT/NAME` where two projects have that name), or on the hub.

    Raises:
        KeyError: no model, or more than one, is called so; the message names the nearest ones.
    """
    for of in (lambda model: (model.name,), _other_names):
        found = [model for model in MODELS if name in of(model)]
        if len(found) == 1:
            return found[0]
        if found:
            raise KeyError(f"{name!r} are several models: say {' or '.join(model.name for model in found)}")
    names = {known: model for model in MODELS for known in (model.name, *_other_names(model))}
    near = dict.fromkeys(names[known].name for known in difflib.get_close_matches(name, names, n=4))
    hint = f"did you mean {' or '.join(near)}?" if near else "known are " + ", ".join(m.name for m in MODELS)
    raise KeyError(f"no published model is called {name!r}; {hint}")


def in_repository(repository: str, file: str | None = None) -> tuple[PublishedModel, ...]:
    """The models that a repository of the hub holds; those in one of its files, if that is named."""
    return tuple(m for m in MODELS if m.repository == repository and file in (None, m.file))


def _other_names(model: PublishedModel) -> tuple[str, ...]:
    return (model.published_as or model.name, model.full_name, model.repository, f"{model.repository}:{model.file}")
