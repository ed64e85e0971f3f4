"""Training and validation data of a generator: token shards, or images that a frozen tokenizer encodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from voken_common.config.schema.generator import GeneratorConfig
from voken_common.data.generator_data import open_held_out, require_known_classes
from voken_jax.generator.frozen_tokenizer import FrozenTokenizer
from voken_jax.generator.step import Batch
from voken_jax.parallel.sharding import batch_sharding


class GeneratorData:
    """Batches of the pipeline become tokens and labels on the devices.

    Args:
        config: the run.
        mesh: axes (data, fsdp, model).
        tokenizer: checkpoint of the tokenizer; None: where the configuration says.

    Raises:
        CheckpointError: the tokenizer is not there, or not what the model is for.
        DataError: held-out shards cannot be used, or the tokenizer is not the one that made the shards.
    """

    def __init__(self, config: GeneratorConfig, mesh: Mesh, tokenizer: Path | None = None):
        self._config, self._mesh = config, mesh
        self.tokenizer = None if config.tokenizer is None else FrozenTokenizer(config, mesh, tokenizer)
        place = jax.process_index(), jax.process_count()
        self._held_out = open_held_out(config, *place) if config.data.held_out else None

    def place(self, batch: Mapping[str, np.ndarray]) -> Batch:
        """Tokens (B, T, S), labels (B,) and, if the batch has one, its mask; images are encoded.

        Raises:
            DataError: a label that the model has no class for.
        """
        where = batch_sharding(self._mesh)
        if "image" not in batch:
            return {name: jax.make_array_from_process_local_data(where, array) for name, array in batch.items()}
        require_known_classes(self._config, int(batch["label"].max(initial=0)))
        assert self.tokenizer is not None
        placed = {name: jax.make_array_from_process_local_data(where, array) for name, array in batch.items()}
        tokens = {"tokens": self.tokenizer.encode(placed.pop("image")), "labels": placed.pop("label")}
        return {**tokens, **placed}

    def held_out(self) -> tuple[Iterator[Batch], int]:
        """All held-out batches, and the number of samples in them."""
        assert self._held_out is not None
        return (self.place(batch) for batch in self._held_out.batches), self._held_out.samples
