"""The precision of inference, which is not that of training: float32 unless the caller says otherwise."""

from __future__ import annotations

from typing import Literal, TypeVar, cast

from voken_common.config.schema.generator import GeneratorConfig
from voken_common.config.schema.tokenizer import Config

Precision = Literal["float32", "bfloat16", "float64"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "float64")
"""What `precision` of `Tokenizer.load` and `--precision` may be."""

AnyRun = TypeVar("AnyRun", bound=Config | GeneratorConfig)


def for_inference(config: AnyRun, precision: Precision = "float32") -> AnyRun:
    """A configuration that computes in `precision`, whatever the model was trained in.

    Args:
        config: of a checkpoint.
        precision: `bfloat16` keeps weights in float32 and multiplies in bfloat16; the others are for both.

    Raises:
        ValueError: another precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision}: expected {', '.join(PRECISIONS)}")
    weights = "float64" if precision == "float64" else "float32"
    section = config.precision.model_copy(update={"param_dtype": weights, "compute_dtype": precision, "remat": False})
    return cast(AnyRun, config.model_copy(update={"precision": section}))
