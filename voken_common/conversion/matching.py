"""Which published model a set of weights belongs to, by names and shapes."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from voken_common import names
from voken_common.config import load_config
from voken_common.conversion.contents import Contents, Manifest, check_networks
from voken_common.conversion.lightning import IMAGE_TOKENIZER
from voken_common.errors import CheckpointError
from voken_common.published import MODELS, PublishedModel, config_file
from voken_common.schema import Config, LFQConfig

logger = logging.getLogger("voken")

_SHOWN = 12
_CODEBOOK = "quantize.embedding.weight"
_LEVEL = re.compile(r"encoder\.down\.(\d+)\.block\.0\.conv1\.weight$")
_BLOCK = re.compile(r"encoder\.down\.0\.block\.(\d+)\.conv1\.weight$")


class Signature(NamedTuple):
    """What the sizes of a few weights tell of a network; None where the weight is missing."""

    learned_codes: bool
    codebook_size: int | None
    code_dim: int | None
    channels: int | None
    channel_multipliers: tuple[int, ...]
    residual_blocks: int

    @classmethod
    def of_weights(cls, weights: Mapping[str, Any]) -> Signature:
        """Read it off the generator's weights (values with a `shape`), by torch name."""
        codebook, latents = (_shape(weights, key) for key in (_CODEBOOK, "encoder.conv_out.weight"))
        first = _shape(weights, "encoder.conv_in.weight")
        channels = first[0] if first else None
        widths = {int(m[1]): weights[key].shape[0] for key in weights if (m := _LEVEL.match(key))}
        multipliers = tuple(widths[level] // (channels or 1) for level in sorted(widths))
        blocks = sum(_BLOCK.match(key) is not None for key in weights)
        if codebook:
            return cls(True, codebook[0], codebook[-1], channels, multipliers, blocks)
        bits = latents[0] if latents else None
        return cls(False, 2**bits if bits is not None and bits < 64 else None, bits, channels, multipliers, blocks)

    @classmethod
    def of_config(cls, config: Config) -> Signature:
        """The one that the weights of a configuration have."""
        model, quantizer = config.model, config.quantizer
        return cls(
            not isinstance(quantizer, LFQConfig),
            quantizer.codebook_size,
            quantizer.code_dim,
            model.channels,
            model.channel_multipliers,
            model.residual_blocks,
        )


def find_config(contents: Contents, manifest_of: Callable[[Config], Manifest]) -> Config:
    """The configuration of the one published model that has exactly the weights of `contents`.

    Args:
        contents: with raw weights, and the discriminator if there is one: some models differ in it alone.
        manifest_of: names and shapes of a configuration; slow, so it is asked only where a few sizes agree.

    Raises:
        CheckpointError: no model fits, or several do; the message says which, and to pass --config.
    """
    signature = Signature.of_weights(next(iter(contents.weights.values())))
    published = [model for model in MODELS if model.family == IMAGE_TOKENIZER.name and model.config is not None]
    known = {model: load_config(config_file(model)) for model in published}
    likely = {model: config for model, config in known.items() if Signature.of_config(config) == signature}
    logger.info(
        "%s does not say which model it is; comparing it with %s",
        contents.origin,
        ", ".join(model.name for model in likely) or "what is published",
    )
    fitting = [model for model, config in likely.items() if _difference(contents, manifest_of(config)) is None]
    if len(fitting) == 1:
        logger.info("it is %s", fitting[0].full_name)
        return likely[fitting[0]]
    if fitting:
        choices = "\n".join(f"  --config {model.name}" for model in fitting)
        raise CheckpointError(
            f"{contents.origin} fits {len(fitting)} published models, which have the same networks and differ in how "
            f"they were trained. Say which it is:\n{choices}"
        )
    raise CheckpointError(_nothing_fits(contents, signature, likely or known, manifest_of))


def _nothing_fits(
    contents: Contents,
    signature: Signature,
    candidates: Mapping[PublishedModel, Config],
    manifest_of: Callable[[Config], Manifest],
) -> str:
    def agreement(model: PublishedModel) -> int:
        return sum(a == b for a, b in zip(signature, Signature.of_config(candidates[model]), strict=True))

    nearest = max(candidates, key=agreement)
    expected = Signature.of_config(candidates[nearest])
    pairs = zip(Signature._fields, signature, expected, strict=True)
    differing = [f"  {field}: found {found}, expected {wanted}" for field, found, wanted in pairs if found != wanted]
    exactly: list[str] = []
    if not differing or None in signature:
        # Names help where single weights are wrong; between different networks they are too many.
        exactly = (_difference(contents, manifest_of(candidates[nearest])) or "").splitlines()
    return "\n".join(
        [
            f"{contents.origin} carries no configuration and fits no published model. The nearest is "
            f"{nearest.full_name}; what differs:",
            *differing,
            *exactly[:_SHOWN],
            *([f"  ... and {len(exactly) - _SHOWN} more lines"] if len(exactly) > _SHOWN else []),
            "If it is a model of your own, pass its configuration with --config FILE",
        ]
    )


def _difference(contents: Contents, manifest: Manifest) -> str | None:
    """Why these are not the weights of a network, or None."""
    try:
        check_networks(contents, manifest)
    except names.NameMismatch as error:
        return str(error)
    return None


def _shape(weights: Mapping[str, Any], key: str) -> tuple[int, ...]:
    return tuple(weights[key].shape) if key in weights else ()
