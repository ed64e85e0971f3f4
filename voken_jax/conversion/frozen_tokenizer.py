"""The tokenizer that goes with a generator: inside a Lightning file, else a checkpoint of its own beside it."""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path

from voken_common.checkpoints.conversion.contents import Contents, Format, Manifest
from voken_common.checkpoints.conversion.matching import published_tokenizer
from voken_common.checkpoints.frozen_tokenizer import find_tokenizer
from voken_common.checkpoints.steps import Weights
from voken_common.config.schema.generator import GeneratorConfig
from voken_common.errors import CheckpointError
from voken_jax.conversion import places

SUFFIX = "_tokenizer"
_NONE = "no tokenizer comes with it: tokens are all that it can make until one is named (--tokenizer CHECKPOINT)"


@dataclasses.dataclass(frozen=True)
class FirstStage:
    """A tokenizer, ready to be written.

    Attributes:
        contents: one set of its weights.
        manifest: of its configuration.
        weights: which set.
        source: its checkpoint; None: it came in the generator's own.
        target: where it goes; None: into the generator's own file.
    """

    contents: Contents
    manifest: Manifest
    weights: Weights
    source: Path | None
    target: Path | None


def target_of(path: Path) -> Path:
    """Return the target for a generator's tokenizer: beside it, `gen_tokenizer` or `gen_tokenizer.pt`."""
    if path.suffix in places.SUFFIXES:
        return path.with_name(f"{path.stem}{SUFFIX}{path.suffix}")
    return path.with_name(path.name + SUFFIX)


def locate(contents: Contents, source: Path, options: argparse.Namespace, target: Format) -> Path | None:
    """The checkpoint of the tokenizer, where it does not come with the generator.

    Raises:
        CheckpointError: the target has to hold it, and it is not to be found.
    """
    if options.tokenizer is not None:
        contents.first_stage = None
        return places.find_source(options.tokenizer, verify=options.checksums)
    if contents.first_stage is not None:
        return None
    reference = contents.config.tokenizer if isinstance(contents.config, GeneratorConfig) else None
    try:
        if reference is not None:
            return places.find_source(find_tokenizer(reference, source), verify=options.checksums)
    except CheckpointError as error:
        if target == "lightning":
            raise
        contents.dropped.append(f"the tokenizer: {error}")
        return None
    if target == "lightning":
        raise CheckpointError(
            f"{source} names no tokenizer, and a Lightning file of a generator holds one: pass --tokenizer CHECKPOINT"
        )
    contents.dropped.append(_NONE)
    return None


def preferred(config: GeneratorConfig) -> str | None:
    """The published tokenizer to take where several have the weights of the first stage."""
    return published_tokenizer(config)


def require_fits(first_stage: Contents, config: GeneratorConfig) -> None:
    """Raise CheckpointError unless the tokenizer has the codes that the generator predicts."""
    tokenizer, codes = first_stage.meta.tokenizer, math.prod(config.model.vocabularies)
    if tokenizer.quantizer.codebook_size != codes:
        raise CheckpointError(
            f"{first_stage.origin} is tokenizer {tokenizer.name} with {tokenizer.quantizer.codebook_size} codes, but "
            f"{config.name} predicts {' x '.join(map(str, config.model.vocabularies))}; name another with --tokenizer"
        )
