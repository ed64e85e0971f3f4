"""Evaluation of a tokenizer on held-out images: L1, PSNR, LPIPS when weights exist, codebook usage, and pictures."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from voken_common.config.schema.tokenizer import Config
from voken_common.evaluation.engine import MetricWeights
from voken_common.evaluation.validation import MetricTotals
from voken_common.training.validation import Validation, ValidationTotals
from voken_torch.device.runtime import Runtime
from voken_torch.device.transfer import one_ahead
from voken_torch.evaluation.engine import Engine
from voken_torch.models.autoencoder import Autoencoder
from voken_torch.models.layers import Policy, plain_attention
from voken_torch.models.lpips import LPIPS
from voken_torch.parallel.sharding import gather_objects
from voken_torch.quantizers.configured import encode_indices, lookup
from voken_torch.quantizers.statistics import init_statistics, update_statistics
from voken_torch.tokenizer.state import TrainState, averaged_autoencoder


class Validator:
    """Evaluation of one state's averages, as they are when it is called.

    Args:
        config: the run.
        state: whose averages are evaluated.
        runtime: the device the state lives on.
        perceptual: LPIPS on the same device, or None.
    """

    def __init__(self, config: Config, state: TrainState, runtime: Runtime, perceptual: LPIPS | None):
        self._config, self._state, self._runtime, self._perceptual = config, state, runtime, perceptual
        settings = config.validation
        weights = MetricWeights(settings.inception, settings.lpips)
        self._engine = Engine(weights, runtime) if settings.metrics else None
        self._policy = Policy(attention=runtime.attention() or plain_attention)

    @torch.no_grad()
    def __call__(self, batches: Iterable[dict[str, np.ndarray]]) -> Validation:
        """Evaluate on this process's batches (`build_validation_batches`) and combine all processes' results.

        Padding and undecodable images are left out of every mean. The pictures are those of this process.
        """
        network = averaged_autoencoder(self._config, self._state, self._policy)
        extra = MetricTotals(self._config.validation.metrics, self._engine)
        totals = ValidationTotals(self._config.validation.pictures, extra)
        statistics = init_statistics(self._config.quantizer.codebook_size, self._runtime.device)
        for batch, tensors in one_ahead(batches, self._runtime.device):
            reconstructions, ids, values = self._evaluate(network, tensors[self._config.data.pixels].movedim(-1, 1))
            present = tensors["mask"] > 0
            statistics = update_statistics(
                statistics, torch.where(present.reshape(-1, *(1,) * (ids.ndim - 1)), ids, -1)
            )
            totals.add(batch, _array(reconstructions.movedim(1, -1)), {k: _array(v) for k, v in values.items()})
        counts = statistics.counts.cpu().numpy()
        for other_totals, other_counts in gather_objects((totals.without_pictures(), counts)):
            totals.merge(other_totals)
            counts = counts + other_counts
        return totals.result(counts)

    def _evaluate(self, network: Autoencoder, images: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        quantizer, precision = self._config.quantizer, self._config.precision
        images = images.to(getattr(torch, precision.param_dtype))
        with self._runtime.autocast(precision.compute_dtype):
            ids = encode_indices(quantizer, network.encode(images), network.codebook)
            reconstructions = network.decode(lookup(quantizer, ids, network.codebook).to(images.dtype)).clamp(-1, 1)
            values = {"l1": (reconstructions - images).abs().flatten(1).mean(dim=1)}
            if self._perceptual is not None:
                values["lpips"] = self._perceptual(images, reconstructions)
        return reconstructions, ids, values


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy() if tensor.dtype == torch.bfloat16 else tensor.cpu().numpy()
