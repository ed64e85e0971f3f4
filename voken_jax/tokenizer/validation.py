"""Evaluation of a tokenizer on held-out images: L1, PSNR, LPIPS when weights exist, codebook usage, and pictures."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from voken_common.config.schema.tokenizer import Config
from voken_common.data.pipeline import ValidationBatches
from voken_common.evaluation.engine import MetricWeights
from voken_common.evaluation.validation import MetricTotals
from voken_common.training.validation import Validation, ValidationTotals
from voken_jax.evaluation.engine import Engine
from voken_jax.models.functional import Network, Weights
from voken_jax.parallel.distributed import gather_objects
from voken_jax.parallel.sharding import batch_sharding, local_rows, replicated
from voken_jax.quantizers.configured import encode_indices, lookup
from voken_jax.quantizers.statistics import (
    CodebookStatistics,
    init_statistics,
    update_statistics,
)
from voken_jax.tokenizer.step import Perceptual


class Validator:
    """Compiled evaluation of one configuration on one mesh."""

    def __init__(self, config: Config, autoencoder: Network, mesh: Mesh, perceptual: Perceptual | None):
        self._config, self._autoencoder, self._mesh = config, autoencoder, mesh
        self._pixels = config.data.pixels
        settings = config.validation
        self._engine = Engine(MetricWeights(settings.inception, settings.lpips)) if settings.metrics else None
        self._perceptual = perceptual
        self._frozen = {} if perceptual is None else jax.device_put(perceptual.weights, replicated(mesh))
        rows = batch_sharding(mesh)
        self._program = jax.jit(self._evaluate, donate_argnums=1, out_shardings=(replicated(mesh), rows, rows))

    def __call__(self, weights: Weights, batches: ValidationBatches) -> Validation:
        """Evaluate `weights` on this process's batches and combine all processes' results.

        Padding and undecodable images are left out of every mean. The pictures are those of this process.
        """
        extra = MetricTotals(self._config.validation.metrics, self._engine)
        totals = ValidationTotals(self._config.validation.pictures, extra)
        statistics = init_statistics(self._config.quantizer.codebook_size)
        for batch in batches:
            arrays = {k: self._to_devices(batch[k]) for k in (self._pixels, "mask")}
            statistics, images, values = self._program(weights, statistics, arrays, self._frozen)
            totals.add(batch, local_rows(images), {name: local_rows(value) for name, value in values.items()})
        for others in gather_objects(totals.without_pictures()):
            totals.merge(others)
        return totals.result(np.asarray(statistics.counts))

    def _to_devices(self, local: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(batch_sharding(self._mesh), local)

    def _evaluate(
        self, weights: Weights, statistics: CodebookStatistics, batch: dict[str, jax.Array], frozen: Weights
    ) -> tuple[CodebookStatistics, jax.Array, dict[str, Any]]:
        model, quantizer, originals = self._autoencoder.bind(weights), self._config.quantizer, batch[self._pixels]
        ids = encode_indices(quantizer, model.encode(originals), model.codebook)
        images = jnp.clip(model.decode(lookup(quantizer, ids, model.codebook)), -1.0, 1.0)
        values = {"l1": jnp.abs(images - originals).mean(axis=tuple(range(1, images.ndim)))}
        if self._perceptual is not None:
            values["lpips"] = self._perceptual.network.bind(frozen)(originals, images)
        counted = jnp.where(batch["mask"].reshape(-1, *(1,) * (ids.ndim - 1)) > 0, ids, -1)
        return update_statistics(statistics, counted), images, values
