"""Evaluation of a generator: cross entropy of held-out tokens, and samples to look at.

Shape legend: B batch, T tokens, S sub-tokens per position.
"""

from __future__ import annotations

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int

from voken_common.config.schema.generator import GeneratorConfig
from voken_common.training.generator_logs import perplexities, shown_seeds
from voken_jax.generator.sampling import compiler_options, generate
from voken_jax.generator.step import Batch
from voken_jax.models.functional import Network, Weights
from voken_jax.models.stacked import bind_stacked, unstack_layers
from voken_jax.parallel.sharding import replicated


class GeneratorValidator:
    """Compiled evaluation of one configuration on one mesh.

    Args:
        config: the run.
        network: the generator as a function of weights.
        mesh: axes (data, fsdp, model).
    """

    def __init__(self, config: GeneratorConfig, network: Network, mesh: Mesh):
        self._config, self._network, self._mesh = config, network, mesh
        self._program = jax.jit(self._sums, out_shardings=replicated(mesh))
        self._sampler = jax.jit(self._generate, out_shardings=replicated(mesh), compiler_options=compiler_options())

    def __call__(self, weights: Weights, batches: Iterable[Batch]) -> dict[str, float]:
        """Metrics of held-out tokens, without dropout; the perplexity is that of the mean loss.

        Args:
            weights: of the generator, layers joined.
            batches: global arrays, as for training, and `mask` (B,): 0 for padding, which is left out of every mean.
        """
        totals: dict[str, float] = {}
        for batch in batches:
            for name, value in self._program(weights, batch).items():
                totals[name] = totals.get(name, 0.0) + float(value)
        samples = totals.pop("samples", 0.0)
        metrics = {name: total / samples for name, total in totals.items()}
        return {**metrics, **perplexities(metrics)}

    def sample(self, weights: Weights, labels: Int[np.ndarray, " B"]) -> Int[np.ndarray, "B T S"]:
        """Tokens of one sample per label, drawn as the configuration says; the same at every validation of a run, and
        those that `Generator.sample` draws with the run's seed.
        """
        seeds = np.array(shown_seeds(self._config.seed, len(labels)), np.uint32)
        return np.asarray(self._sampler(weights, np.asarray(labels, np.int32), seeds))

    def _sums(self, weights: Weights, batch: Batch) -> dict[str, Array]:
        with jax.sharding.use_abstract_mesh(self._mesh.abstract_mesh):
            logits = bind_stacked(self._network, weights)(batch["tokens"], batch["labels"])
        total, mask = jnp.zeros((), logits[0].dtype), batch["mask"]
        sums: dict[str, Array] = {}
        for number, (part, suffix) in enumerate(zip(logits, self._config.model.suffixes, strict=True)):
            target = batch["tokens"][..., number]
            losses = optax.softmax_cross_entropy_with_integer_labels(part, target)
            sums[f"loss{suffix}"] = (mask * losses.mean(axis=1)).sum()
            sums[f"accuracy{suffix}"] = (mask * (part.argmax(axis=-1) == target).mean(axis=1)).sum()
            total = total + sums[f"loss{suffix}"]
        return {"loss": total, **sums, "samples": mask.sum()}

    def _generate(self, weights: Weights, labels: Array, seeds: Array) -> Array:
        model = self._network.bind(unstack_layers(weights))
        return generate(model, labels, jax.vmap(jax.random.key)(seeds), self._config.sampling.settings())
