"""Recognise the published model of a set of weights by names and shapes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from voken_common.checkpoints import weight_names as names
from voken_common.checkpoints.conversion.contents import Contents, Manifest, check_networks
from voken_common.checkpoints.conversion.signatures import GeneratorSignature, Signature, TokenizerSignature
from voken_common.config.loading import AnyConfig, load_any_config
from voken_common.errors import CheckpointError
from voken_common.published.models import MODELS, PublishedModel, config_file, find, has_config

logger = logging.getLogger("voken")

_SHOWN = 12


def find_config(
    contents: Contents,
    manifest_of: Callable[[AnyConfig], Manifest],
    prefer: str = "",
    option: str = "--config",
) -> tuple[AnyConfig, PublishedModel]:
    """The published model that has exactly the weights of `contents`, and its configuration.

    Models that share their networks differ in how they were trained, which inference does not need: of those the one
    that the file is called after is taken, else the first, and a warning says so.

    Args:
        contents: with raw weights, and the discriminator if there is one: some models differ in it alone.
        manifest_of: names and shapes of a configuration; slow, so it is asked only where a few sizes agree.
        prefer: name of a model, or of the file.
        option: of the command line, by which the user can say it.

    Raises:
        CheckpointError: no model fits; the message names the nearest one, and says to pass the option.
    """
    kind: type[Signature] = GeneratorSignature if contents.kind == "generator" else TokenizerSignature
    signature = kind.of_weights(next(iter(contents.weights.values())))
    published = [model for model in MODELS if _is_of(model, contents.kind) and has_config(model)]
    known = {model: load_any_config(config_file(model)) for model in published}
    likely = {model: config for model, config in known.items() if kind.of_config(config) == signature}
    logger.info(
        "%s does not say which model it is; comparing it with %s",
        contents.origin,
        ", ".join(model.name for model in likely) or "what is published",
    )
    fitting = [model for model, config in likely.items() if difference(contents, manifest_of(config)) is None]
    if not fitting:
        raise CheckpointError(_nothing_fits(contents, signature, likely or known, manifest_of, option))
    chosen = min(fitting, key=lambda model: _distance(model, prefer))
    if len(fitting) > 1 and not _is_called_after(chosen, fitting, prefer):
        logger.warning(
            "%s fits %s, which have the same networks and differ in how they were trained. It is taken for %s; "
            "%s says otherwise",
            contents.origin,
            " and ".join(model.name for model in fitting),
            chosen.name,
            f"{option} {next(model.name for model in fitting if model is not chosen)}",
        )
    else:
        logger.info("it is %s", chosen.name)
    return likely[chosen], chosen


def _is_of(model: PublishedModel, kind: str) -> bool:
    return (model.family == "generator") == (kind == "generator")


def _distance(model: PublishedModel, name: str) -> int:
    """Measure the distance between the names of a file and of a model."""
    if name in (model.name, model.file, model.full_name):
        return 0
    if model.name in name:
        return 1
    # Pretrained models say so in every name that they are published under.
    return 2 if ("pretrain" in model.name) == ("pretrain" in name.lower()) else 3


def _is_called_after(chosen: PublishedModel, fitting: list[PublishedModel], name: str) -> bool:
    """True if a name tells one of several models from the others."""
    nearest = _distance(chosen, name)
    return (nearest < 2 or "pretrain" in name.lower()) and sum(_distance(m, name) == nearest for m in fitting) == 1


def named_config(given: str, option: str) -> AnyConfig:
    """The configuration in a YAML file, or of a published model.

    Raises:
        ValueError: neither, or a model that this version does not support.
    """
    if Path(given).exists() or given.endswith((".yaml", ".yml")):
        return load_any_config(given)
    try:
        model = find(given)
    except KeyError as error:
        raise CheckpointError(f"{option} {given}: no such file, and {error.args[0]}") from error
    if not has_config(model):
        raise CheckpointError(f"{option} {given}: a {model.family}, which this version of voken does not support yet")
    return load_any_config(config_file(model))


def published_tokenizer(config: AnyConfig) -> str | None:
    """The published tokenizer of the published generator that has the network of `config`, if there is such."""
    for model in MODELS:
        if (
            model.tokenizer is not None
            and has_config(model)
            and load_any_config(config_file(model)).model == config.model
        ):
            return model.tokenizer
    return None


def _nothing_fits(
    contents: Contents,
    signature: Signature,
    candidates: Mapping[PublishedModel, AnyConfig],
    manifest_of: Callable[[AnyConfig], Manifest],
    option: str,
) -> str:
    def agreement(model: PublishedModel) -> int:
        return sum(a == b for a, b in zip(signature, signature.of_config(candidates[model]), strict=True))

    nearest = max(candidates, key=agreement)
    expected = signature.of_config(candidates[nearest])
    pairs = zip(signature._fields, signature, expected, strict=True)
    differing = [f"  {field}: found {found}, expected {wanted}" for field, found, wanted in pairs if found != wanted]
    exactly: list[str] = []
    if not differing or None in signature:
        # Names help where single weights are wrong; between different networks they are too many.
        exactly = (difference(contents, manifest_of(candidates[nearest])) or "").splitlines()
    return "\n".join(
        [
            f"{contents.origin} carries no configuration and fits no published model. The nearest is "
            f"{nearest.name}; what differs:",
            *differing,
            *exactly[:_SHOWN],
            *([f"  ... and {len(exactly) - _SHOWN} more lines"] if len(exactly) > _SHOWN else []),
            f"If it is a model of your own, pass its configuration with {option} FILE",
        ]
    )


def difference(contents: Contents, manifest: Manifest) -> str | None:
    """Return the reason why these are not the weights of a network, or None."""
    try:
        check_networks(contents, manifest)
    except names.NameMismatch as error:
        return str(error)
    return None
