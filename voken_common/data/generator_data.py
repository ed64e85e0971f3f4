"""Training data of generators, for either framework: token shards, or images that a frozen tokenizer encodes."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any, NamedTuple

from voken_common.config.schema.generator import GeneratorConfig
from voken_common.config.schema.tokenizer import Config
from voken_common.data.errors import DataError
from voken_common.data.inspection import look_through
from voken_common.data.pipeline import TrainIterator, ValidationBatches, build_train_iterator, build_validation_batches
from voken_common.data.sources.build import build_source, classes_of
from voken_common.data.tokens.folder import read_info
from voken_common.data.tokens.pipeline import TokenBatches, TokenIterator, build_token_batches, build_token_iterator
from voken_common.data.tokens.shards import TokenShardSource
from voken_common.errors import CheckpointError

logger = logging.getLogger("voken")

_NAMED = "class_names of the configuration"


class HeldOut(NamedTuple):
    """Batches of one process, all of one shape, and the number of samples in those of all processes."""

    batches: TokenBatches | ValidationBatches
    samples: int


def open_training(config: GeneratorConfig, process_index: int, process_count: int) -> TokenIterator | TrainIterator:
    """The training data: batches of `tokens` and `labels`, or of `image` and `label`.

    Raises:
        DataError: it is not there, or not what the model is for.
    """
    placement: dict[str, Any] = {
        "batch_size_per_process": config.training.batch_size // process_count,
        "seed": config.seed,
        "process_index": process_index,
        "process_count": process_count,
    }
    if config.data.images is not None:
        images = build_source(config.data.images.train)
        if config.class_names:
            images.adopt_classes(config.class_names, _NAMED)
        look_through(config.data.images, images)
        return build_train_iterator(config.data.images, source=images, **placement)
    assert config.data.train is not None, "the schema asks for shards or images"
    return build_token_iterator(config.data, source=open_shards(config, config.data.train), **placement)


def describe_training(config: GeneratorConfig, iterator: TokenIterator | TrainIterator) -> str:
    """One line for the log."""
    encoded = "" if config.data.images is None else f", encoded by {config.tokenizer}"
    return f"training on {iterator.source.describe()}{encoded}"


def open_held_out(config: GeneratorConfig, process_index: int, process_count: int) -> HeldOut:
    """The validation data, to be gone through as often as needed: as for training, and `mask` (0 for padding).

    Raises:
        DataError: none is set, or it is not what the model is for.
    """
    validation = config.validation
    placement: dict[str, Any] = {
        "batch_size": validation.batch_size // process_count,
        "process_index": process_index,
        "process_count": process_count,
    }
    if config.data.images is not None:
        # Its labels are numbered as those of the training images.
        images = build_validation_batches(config.data.images, max_images=validation.max_samples, **placement)
        if config.class_names:
            images.source.adopt_classes(config.class_names, _NAMED)
        return HeldOut(images, images.num_images)
    source = None
    if config.data.validation is not None:
        assert config.data.train is not None, "the schema asks for shards or images"
        source = open_shards(config, config.data.validation, beside=config.data.train)
    tokens = build_token_batches(config.data, max_samples=validation.max_samples, source=source, **placement)
    return HeldOut(tokens, tokens.num_samples)


def open_shards(config: GeneratorConfig, path: str, *, beside: str | None = None) -> TokenShardSource:
    """Token shards that fit the model.

    Args:
        config: the run.
        path: folder of the shards.
        beside: folder of the training shards, whose tokenizer and numbers of the classes these are to share.

    Raises:
        DataError: they are not there, or of another grid, other vocabularies or more classes; or of another tokenizer
            or other classes than those beside them.
    """
    source = TokenShardSource(path, config.data.retry_seconds)
    if beside is not None:
        training = read_info(Path(beside).expanduser())
        if training.tokenizer.fingerprint != source.info.tokenizer.fingerprint:
            raise DataError(
                f"{path} holds tokens of tokenizer {source.info.tokenizer.fingerprint[:12]} "
                f"({source.info.tokenizer.name}), {beside} those of {training.tokenizer.fingerprint[:12]} "
                f"({training.tokenizer.name}): the same number means other codes in each. Encode both with one"
            )
        if training.tokenizer.precision != source.info.tokenizer.precision:
            raise DataError(
                f"{path} holds tokens computed in {source.info.tokenizer.precision}, {beside} those computed in "
                f"{training.tokenizer.precision}, which differ by several per cent. Encode both in one precision"
            )
        source.adopt_classes(training.class_names, beside)
    if config.class_names:
        source.adopt_classes(config.class_names, _NAMED)
    source.info.require_fits(config.model, path, source.label_count)
    return source


def with_origin(config: GeneratorConfig, fingerprint: str | None) -> GeneratorConfig:
    """The configuration as checkpoints hold it: with the tokenizer of the tokens, and the names of the classes.

    Args:
        config: the run.
        fingerprint: of the tokenizer that `tokenizer` names; None where it names none.

    Raises:
        DataError: the tokens are of another tokenizer than `tokenizer_fingerprint` says, or shards cannot be read.
    """
    if config.data.images is not None:
        names = classes_of(config.data.images.train)
    else:
        assert config.data.train is not None, "the schema asks for shards or images"
        info = read_info(Path(config.data.train).expanduser())
        fingerprint, names = info.tokenizer.fingerprint, info.class_names
    if config.tokenizer_fingerprint not in (None, fingerprint):
        raise DataError(
            f"tokenizer_fingerprint is {config.tokenizer_fingerprint}, but the tokens are of tokenizer {fingerprint}: "
            "use the tokenizer or the tokens that the run was made with, or leave tokenizer_fingerprint out"
        )
    return config.model_copy(update={"tokenizer_fingerprint": fingerprint, "class_names": config.class_names or names})


def require_same_tokenizer(config: GeneratorConfig, fingerprint: str) -> None:
    """Raise DataError unless the shards of a run are of the tokenizer, which has this fingerprint."""
    for path in (config.data.train, config.data.validation):
        if path is None:
            continue
        made_by = open_shards(config, path).info.tokenizer
        if made_by.fingerprint != fingerprint:
            raise DataError(
                f"{path} holds tokens of tokenizer {made_by.name} ({made_by.reference}), and tokenizer "
                f"{config.tokenizer} is another one: its pictures would be wrong. Set tokenizer to the one that made "
                "the tokens, or to null"
            )


def require_fitting_tokenizer(config: GeneratorConfig, tokenizer: Config) -> None:
    """Raise CheckpointError unless a tokenizer has the generator's codes and, where it encodes, its grid of tokens."""
    codes, vocabularies = tokenizer.quantizer.codebook_size, config.model.vocabularies
    if codes != math.prod(vocabularies):
        raise CheckpointError(
            f"tokenizer {config.tokenizer} has {codes} codes, model.vocabularies {list(vocabularies)} make "
            f"{math.prod(vocabularies)}: use the tokenizer that the generator is for, or change model.vocabularies"
        )
    images, pixels = config.data.images, tokenizer.model.downsampling
    if images is not None and images.image_size != config.model.grid * pixels:
        raise CheckpointError(
            f"data.images.image_size is {images.image_size}; model.grid {config.model.grid} with the tokenizer's "
            f"{pixels} pixels per token expects {config.model.grid * pixels}"
        )


def require_known_classes(config: GeneratorConfig, largest_label: int) -> None:
    """Raise DataError at a label of an image that the model has no class for."""
    if largest_label >= config.model.classes:
        raise DataError(
            f"data.images gives class {largest_label}, model.classes {config.model.classes} expects less: set "
            "model.classes to the number of classes of the images"
        )
