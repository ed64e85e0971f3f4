"""Summaries that `print(tokenizer)` and `print(generator)` show."""

from __future__ import annotations

from typing import Any, NamedTuple

from voken_common.config.schema.generator import GeneratorConfig
from voken_common.config.schema.quantizer import LFQConfig
from voken_common.config.schema.tokenizer import Config


class Machinery(NamedTuple):
    """Formats and device in which a loaded model computes.

    Attributes:
        parameters: number of weights.
        stored: type of the weights.
        computed: type that is computed in.
        device: name of it.
        source: what was loaded; empty: it was made from weights.
    """

    parameters: int
    stored: str
    computed: str
    device: str
    source: str


def summarize_tokenizer(config: Config, how: Machinery) -> str:
    """Model, codes, size, precision, device and source, a line each."""
    quantizer, side = config.quantizer, config.model.downsampling
    codes = f"{quantizer.codebook_size:,}, one a token of {side} x {side} pixels"
    kind = f"{quantizer.code_dim} bits" if isinstance(quantizer, LFQConfig) else f"{quantizer.code_dim} numbers"
    size = config.data.image_size
    rows = {
        "model": f"{config.name}: {config.model.network}, {quantizer.kind} with codes of {kind}",
        "codes": codes,
        "images": f"any multiple of {side}; trained on {size} x {size}, which are {size // side} x {size // side} ids",
    }
    if config.model.is_video:
        time = config.model.time_downsampling
        rows["clips"] = f"a multiple of {time} frames, and one more; {time} frames a token after the first"
    return _lines("Tokenizer", rows | _rows(how))


def summarize_generator(config: GeneratorConfig, how: Machinery) -> str:
    """Model, classes, tokens, size, precision, device and source, a line each."""
    model = config.model
    codes = " x ".join(f"{codes:,}" for codes in model.vocabularies)
    rows = {
        "model": f"{config.name}: {model.layers} layers of {model.width}",
        "classes": f"{model.classes:,}" + (", with names" if getattr(config, "class_names", ()) else ""),
        "tokens": f"{model.grid} x {model.grid} of {codes} codes",
        "tokenizer": config.tokenizer or "none named",
    }
    return _lines("Generator", rows | _rows(how))


def _rows(how: Machinery) -> dict[str, Any]:
    return {
        "parameters": f"{how.parameters / 1e6:,.1f} M" if how.parameters >= 1e5 else f"{how.parameters:,}",
        "precision": how.stored if how.stored == how.computed else f"{how.computed}, weights in {how.stored}",
        "device": how.device,
        "source": how.source or "weights that were passed",
    }


def _lines(title: str, rows: dict[str, Any]) -> str:
    width = max(map(len, rows))
    return "\n".join([title, *(f"  {name:{width}}  {value}" for name, value in rows.items())])
