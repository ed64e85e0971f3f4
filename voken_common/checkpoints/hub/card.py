"""The model card of a shared model: what it is, how to use it in both frameworks, what was measured."""

from __future__ import annotations

from collections.abc import Mapping

from voken_common.config.loading import AnyConfig
from voken_common.config.schema.generator import GeneratorConfig
from voken_common.config.schema.tokenizer import Config
from voken_common.published.models import PublishedModel

_TOKENIZER_USE = """```python
from voken_torch import Tokenizer                     # or voken_jax
tokenizer = Tokenizer.load("{repository}")
ids = tokenizer.encode("photo.png")                   # whole numbers below {codes:,}, one per {side} x {side} pixels
images = tokenizer.decode(ids)
```"""
_GENERATOR_USE = """```python
from voken_torch import Generator                     # or voken_jax
generator = Generator.load("{repository}")
images = generator.sample([0, 1, 2, 3], seed=0).images
```"""


def model_card(
    config: AnyConfig,
    metrics: Mapping[str, float],
    model: PublishedModel | None,
    picture: str | None,
    repository: str,
) -> str:
    """Markdown with the header that the hub reads.

    Args:
        config: of the model.
        metrics: of its last validation, by name.
        model: the published model that it is; what its authors report is told.
        picture: file of a picture beside the card.
        repository: under which the model loads.
    """
    tags = ["voken", "visual-tokenizer" if isinstance(config, Config) else "image-generation", "jax", "pytorch"]
    lines = ["---", "library_name: voken", "tags:", *(f"- {tag}" for tag in tags), "---", "", f"# {config.name}", ""]
    lines += [_summary(config), ""]
    if picture is not None:
        lines += [f"![{_caption(config)}]({picture})", "", f"{_caption(config)}.", ""]
    use = _GENERATOR_USE if isinstance(config, GeneratorConfig) else _TOKENIZER_USE
    values = {"repository": repository}
    if isinstance(config, Config):
        lines += [
            "## Use",
            "",
            use.format(codes=config.quantizer.codebook_size, side=config.model.downsampling, **values),
        ]
    else:
        lines += ["## Use", "", use.format(**values)]
    lines += ["", *_figures(metrics, model)]
    return "\n".join(lines).rstrip() + "\n"


def _summary(config: AnyConfig) -> str:
    if isinstance(config, GeneratorConfig):
        codes = " x ".join(f"{codes:,}" for codes in config.model.vocabularies)
        return (
            f"A class-conditional generator of {config.model.grid} x {config.model.grid} tokens of {codes} codes, "
            f"{config.model.classes:,} classes, with its tokenizer in `tokenizer.safetensors`."
        )
    model, quantizer = config.model, config.quantizer
    order = getattr(quantizer, "bit_order", None)
    bits = (
        "" if order is None else f" Ids have the {'most' if order == 'msb_first' else 'least'} significant bit first."
    )
    return (
        f"A visual tokenizer: {model.network} network, {quantizer.kind} with {quantizer.codebook_size:,} codes of "
        f"{quantizer.code_dim}, one id for {model.downsampling} x {model.downsampling} pixels.{bits}"
    )


def _caption(config: AnyConfig) -> str:
    return (
        "Samples"
        if isinstance(config, GeneratorConfig)
        else "From the left: the original, decoded from its ids, and their difference"
    )


def _figures(metrics: Mapping[str, float], model: PublishedModel | None) -> list[str]:
    lines = []
    if metrics:
        lines += ["## Measured at its last validation", "", "| metric | value |", "| --- | --- |"]
        lines += [f"| {name} | {value:.4g} |" for name, value in sorted(metrics.items())]
    if model is not None and model.figures:
        lines += ["", f"## Reported by the authors of {model.full_name}", "", "| metric | on | value |"]
        lines += ["| --- | --- | --- |"]
        lines += [f"| {figure.metric} | {figure.on} | {figure.value:g} |" for figure in model.figures]
    return lines
