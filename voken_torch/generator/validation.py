"""Evaluation of a generator: cross entropy of held-out tokens, and samples to look at.

Shape legend: B batch, T tokens, S sub-tokens per position, V codes of one sub-token.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from voken_common.config.schema.generator import GeneratorConfig
from voken_common.training.generator_logs import perplexities, shown_seeds
from voken_torch.device.runtime import Runtime
from voken_torch.generator.sampling import generate
from voken_torch.generator.step import Batch
from voken_torch.models.generator import Adaptive, Factorized
from voken_torch.parallel.sharding import reduce_mean


class GeneratorValidator:
    """Evaluation of one configuration on this process's device.

    Args:
        config: the run.
        runtime: the device of the networks that are evaluated.
    """

    def __init__(self, config: GeneratorConfig, runtime: Runtime):
        self._config, self._runtime = config, runtime

    @torch.no_grad()
    def __call__(self, network: Factorized | Adaptive, batches: Iterable[Batch]) -> dict[str, float]:
        """Metrics of the held-out tokens of all processes; the perplexity is that of the mean loss.

        Args:
            network: in evaluation mode.
            batches: this process's, as for training, and `mask` (B,): 0 for padding, which is left out of every mean.
        """
        totals: dict[str, Tensor] = {}
        for batch in batches:
            for name, value in self._sums(network, batch).items():
                totals[name] = totals.get(name, 0.0) + value
        sums = dict(zip(totals, reduce_mean(torch.stack(list(totals.values()))).tolist(), strict=True))
        samples = sums.pop("samples")
        metrics = {name: total / samples for name, total in sums.items()}
        return {**metrics, **perplexities(metrics)}

    def sample(self, network: Factorized | Adaptive, labels: Int[np.ndarray, " B"]) -> Int[np.ndarray, "B T S"]:
        """Tokens of one sample per label, drawn as the configuration says; the same at every validation of a run, and
        those that `Generator.sample` draws with the run's seed.
        """
        seeds = shown_seeds(self._config.seed, len(labels))
        classes = torch.from_numpy(labels).long().to(self._runtime.device)
        with self._runtime.autocast(self._config.precision.compute_dtype):
            tokens = generate(network, classes, seeds, self._config.sampling.settings())
        return tokens.cpu().numpy()

    def _sums(self, network: Factorized | Adaptive, batch: Batch) -> dict[str, Tensor]:
        batch = {name: value.to(self._runtime.device) for name, value in batch.items()}
        with self._runtime.autocast(self._config.precision.compute_dtype):
            logits = network(batch["tokens"], batch["labels"])
        mask = batch["mask"].to(logits[0].dtype)
        sums: dict[str, Tensor] = {"loss": mask.new_zeros(())}
        for number, (part, suffix) in enumerate(zip(logits, self._config.model.suffixes, strict=True)):
            target = batch["tokens"][..., number].long()
            losses = F.cross_entropy(part.movedim(-1, 1), target, reduction="none").mean(dim=1)
            hits = (part.argmax(dim=-1) == target).to(mask.dtype).mean(dim=1)
            total = (mask * losses).sum()
            sums["loss"] = sums["loss"] + total
            if suffix:
                sums[f"loss{suffix}"] = total
            sums[f"accuracy{suffix}"] = (mask * hits).sum()
        return {**sums, "samples": mask.sum()}
