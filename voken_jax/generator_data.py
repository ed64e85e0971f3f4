"""What a generator is trained and validated on: token shards, or images that a frozen tokenizer encodes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Mesh

from voken_common.data.errors import DataError
from voken_common.data.pipeline import TrainIterator, build_train_iterator, build_validation_batches
from voken_common.data.sources import build_source
from voken_common.data.token_pipeline import TokenIterator, build_token_batches, build_token_iterator
from voken_common.data.token_shards import TokenShardSource
from voken_common.generator_schema import GeneratorConfig
from voken_jax.frozen_tokenizer import FrozenTokenizer
from voken_jax.generator_step import Batch
from voken_jax.sharding import batch_sharding

logger = logging.getLogger("voken")


def open_tokens(config: GeneratorConfig) -> TokenIterator | TrainIterator:
    """The training data: batches of tokens, or of images.

    Raises:
        DataError: it is not there, or not what the model is for.
    """
    placement: dict[str, Any] = {
        "batch_size_per_process": config.training.batch_size // jax.process_count(),
        "seed": config.seed,
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
    }
    if not config.data.held_out:
        logger.info("no held-out data is set: no validation, no pictures")
    if config.data.images is not None:
        images = build_source(config.data.images.train)
        logger.info("training on %s, encoded by %s", images.describe(), config.tokenizer)
        return build_train_iterator(config.data.images, source=images, **placement)
    source = open_shards(config, cast(str, config.data.train))
    logger.info("training on %s", source.describe())
    return build_token_iterator(config.data, source=source, **placement)


def open_shards(config: GeneratorConfig, path: str) -> TokenShardSource:
    """Token shards that fit the model.

    Raises:
        DataError: they are not there, or of another grid, other vocabularies or more classes.
    """
    source = TokenShardSource(path)
    source.info.require_fits(config.model, path)
    return source


class GeneratorData:
    """Batches of the pipeline become tokens and labels on the devices.

    Args:
        config: the run.
        mesh: axes (data, fsdp, model).

    Raises:
        CheckpointError: the tokenizer is not there, or not what the model is for.
        DataError: held-out shards cannot be used, or the tokenizer is not the one that made the shards.
    """

    def __init__(self, config: GeneratorConfig, mesh: Mesh):
        self._config, self._mesh = config, mesh
        self.tokenizer = None if config.tokenizer is None else FrozenTokenizer(config.tokenizer, config.model, mesh)
        if config.data.images is not None and self.tokenizer is not None:
            self.tokenizer.require_size(config.data.images.image_size)
        paths = [path for path in (config.data.train, config.data.validation) if path is not None]
        sources = {path: open_shards(config, path) for path in paths}
        self._held_out = None if config.data.validation is None else sources[config.data.validation]
        for path, source in sources.items():
            self._check_tokenizer(path, source)

    def place(self, batch: dict[str, np.ndarray]) -> Batch:
        """Tokens (B, T, S), labels (B,) and, if the batch has one, its mask; images are encoded.

        Raises:
            DataError: a label that the model has no class for.
        """
        where = batch_sharding(self._mesh)
        if "image" not in batch:
            return {name: jax.make_array_from_process_local_data(where, array) for name, array in batch.items()}
        largest, classes = int(batch["label"].max(initial=0)), self._config.model.classes
        if largest >= classes:
            raise DataError(
                f"data.images gives class {largest}, model.classes {classes} expects less: set model.classes to the "
                "number of classes of the images"
            )
        assert self.tokenizer is not None
        placed = {name: jax.make_array_from_process_local_data(where, array) for name, array in batch.items()}
        tokens = {"tokens": self.tokenizer.encode(placed.pop("image")), "labels": placed.pop("label")}
        return {**tokens, **placed}

    def held_out(self) -> tuple[Iterator[Batch], int]:
        """All held-out batches, and the number of samples in them."""
        validation = self._config.validation
        placement: dict[str, Any] = {
            "batch_size": validation.batch_size // jax.process_count(),
            "process_index": jax.process_index(),
            "process_count": jax.process_count(),
        }
        if self._config.data.images is not None:
            images = build_validation_batches(self._config.data.images, max_images=validation.max_samples, **placement)
            return (self.place(batch) for batch in images), images.num_images
        assert self._held_out is not None
        tokens = build_token_batches(
            self._config.data, max_samples=validation.max_samples, source=self._held_out, **placement
        )
        return (self.place(batch) for batch in tokens), tokens.num_samples

    def _check_tokenizer(self, path: str, source: TokenShardSource) -> None:
        made_by = source.info.tokenizer
        if self.tokenizer is None or self.tokenizer.tokenizer.fingerprint() == made_by.fingerprint:
            return
        raise DataError(
            f"{path} holds tokens of tokenizer {made_by.name} ({made_by.reference}), and tokenizer "
            f"{self._config.tokenizer} is another one: its pictures would be wrong. Set tokenizer to the one that made "
            "the tokens, or to null"
        )
