"""The public Generator: load a checkpoint, draw images of classes.

Shape legend: B samples, h w tokens along the sides, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray
from numpy.typing import ArrayLike, DTypeLike

from voken_common.api.sharing import Known, Shareable
from voken_common.api.summary import Machinery, summarize_generator
from voken_common.checkpoints.frozen_tokenizer import find_tokenizer
from voken_common.checkpoints.hub.sharing import Shared
from voken_common.checkpoints.steps import Step, Weights
from voken_common.checkpoints.weight_names import require_same_shapes, to_torch
from voken_common.config.inference import Precision
from voken_common.config.schema.generator import GeneratorConfig, SamplingConfig
from voken_common.config.schema.sampling import Sampling
from voken_common.data.tokens.format import bit_order_of, fingerprint_of, join_ids
from voken_common.pixels import to_uint8
from voken_common.sampling.requests import (
    Samples,
    check_cache_dtype,
    check_labels,
    check_sampling,
    check_seeds,
    no_tokenizer,
    require_fitting,
    require_trained_with,
)
from voken_common.visual.grids import sample_grid
from voken_jax.checkpoints import load as loading
from voken_jax.generator.sampling import compiler_options, generate
from voken_jax.tokenizer.api import Tokenizer
from voken_jax.tokenizer.state import build_generator_network


class Generator(Shareable):
    """A trained class-conditional generator. Programs are compiled once per number of samples and way of drawing.

    Args:
        config: the run it comes from; its `model`, `precision` and `sampling` are used.
        weights: by dotted name. They are kept in the precision that is computed in.
        tokenizer: what turns tokens into images; None: found through the configuration when it is needed.
        origin: the checkpoint, beside which the tokenizer is looked for.
        verify: whether to verify the checksums of a tokenizer that is found so.

    Raises:
        NameMismatch: the weights are not those of the network.
        CheckpointError: the tokenizer has not the codes that are generated.
    """

    def __init__(
        self,
        config: GeneratorConfig,
        weights: dict[str, Array],
        tokenizer: Tokenizer | None = None,
        origin: str | Path = ".",
        verify: bool = True,
    ):
        self.config, self.origin = config, str(origin)
        self._network = build_generator_network(config)
        require_same_shapes(weights, self._network.parameters, f"weights of {config.name}")
        dtype = jnp.dtype(config.precision.compute_dtype)
        self._weights = {name: weight.astype(dtype) for name, weight in weights.items()}
        self._tokenizer, self._verify = tokenizer, verify
        self._precision: Precision = config.precision.compute_dtype
        self._tokenizer_source: str | Path | None = None
        if tokenizer is not None:
            require_fitting(config, tokenizer.config, tokenizer.config.name)
            require_trained_with(config, tokenizer.fingerprint, tokenizer.config.name)
        self._generate = jax.jit(
            self._program, static_argnames=("sampling", "cache_dtype"), compiler_options=compiler_options()
        )

    @classmethod
    def load(
        cls,
        source: str | Path,
        tokenizer: Tokenizer | str | Path | None = None,
        *,
        precision: Precision = "float32",
        weights: Weights | None = None,
        step: Step = "latest",
        config: str | Path | None = None,
        verify: bool = True,
    ) -> Generator:
        """Read a checkpoint; what has to be downloaded or converted is, once.

        Args:
            source: a published model or a repository of the hub (`OWNER/NAME[@REVISION][:FILE]`), a Lightning .ckpt,
                a .pt or .safetensors file, a work directory, or a step in one.
            tokenizer: what turns tokens into images, or its source; None: the one that came with the generator, else
                the one that the configuration names, looked for beside the generator's work directory, then where the
                configuration says, else the published one that belongs to a published generator.
            precision: to compute in, whatever the model was trained in: float32, bfloat16, or float64 (where JAX has it
                enabled).
            weights: `ema` (averages) or `raw`; None: averages if there are any.
            step: which step of a work directory: `latest`, `best` or a number.
            config: a YAML file or a published model, where a foreign file does not say what it is.
            verify: whether to verify the checksums of what is read, the tokenizer's too.

        Raises:
            CheckpointError: there is no such checkpoint, it is damaged, or it is not one of a generator.
            NameMismatch: the weights are not those of the network.
        """
        found = loading.load(
            source,
            lambda meta: build_generator_network(meta.generator),
            step=step,
            weights=weights,
            config=config,
            verify=verify,
            precision=precision,
        )
        if tokenizer is not None and not isinstance(tokenizer, Tokenizer):
            tokenizer = Tokenizer.load(tokenizer, precision=precision, verify=verify)
        generator = cls(found.meta.generator, found.weights, tokenizer, found.path, verify)
        generator._precision, generator._tokenizer_source = precision, found.resolved.tokenizer
        generator.known = Known(found.kind, found.meta.metrics, found.resolved.model)
        return generator

    from_pretrained = load

    @property
    def device(self) -> str:
        """The devices that hold the weights."""
        return ", ".join(sorted(map(str, next(iter(self._weights.values())).devices())))

    def __repr__(self) -> str:
        weights = self._weights.values()
        dtype = str(next(iter(weights)).dtype)
        count = sum(weight.size for weight in weights)
        return summarize_generator(self.config, Machinery(count, dtype, dtype, f"{self.device} (JAX)", self.origin))

    def _to_share(self, picture: bool) -> tuple[Shared, Shared]:
        arrays = to_torch({name: np.asarray(leaf) for name, leaf in self._weights.items()})
        shown = None
        if picture:
            labels = list(range(min(4, self.classes)))
            shown = sample_grid(
                list(to_uint8(np.asarray(self.sample(labels).images))), [f"class {label}" for label in labels]
            )
        known, (tokenizer, _) = self.known, self.tokenizer._to_share(False)
        return Shared(self.config, arrays, known.weights, known.metrics, known.model, shown), tokenizer

    def fingerprint(self) -> str:
        """A hash of network and weights, in the precision in which they are computed with."""
        weights = {name: np.asarray(leaf) for name, leaf in self._weights.items()}
        return fingerprint_of(self.config.model.model_dump(mode="json"), to_torch(weights))

    @property
    def classes(self) -> int:
        """Labels are in [0, classes)."""
        return self.config.model.classes

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that turns tokens into images.

        Raises:
            CheckpointError: none is named, it is not there, or it has other codes than are generated.
        """
        if self._tokenizer is None:
            place = self._tokenizer_source
            if place is None and self.config.tokenizer is None:
                raise no_tokenizer(self.config)
            place = place or find_tokenizer(str(self.config.tokenizer), self.origin)
            tokenizer = Tokenizer.load(place, precision=self._precision, verify=self._verify)
            require_fitting(self.config, tokenizer.config, str(place))
            require_trained_with(self.config, tokenizer.fingerprint, str(place))
            self._tokenizer = tokenizer
        return self._tokenizer

    def sample(
        self,
        labels: ArrayLike | str | Sequence[int | str],
        *,
        seed: int = 0,
        seeds: Sequence[int] | None = None,
        sampling: Sampling | SamplingConfig | None = None,
        images: bool = True,
        cache_dtype: DTypeLike | None = None,
    ) -> Samples:
        """One sample per label; see `voken_common.sampling.requests.Samples`.

        Args:
            labels: (B,) a class per sample, in any mixture: numbers, or names where `config.class_names` has them.
            seed: decides all samples together.
            seeds: (B,) instead, one per sample: the same seed and class give the same sample whatever the batch, up to
                the rounding of sums.
            sampling: guidance, temperature and filters; None: those of the configuration.
            images: False leaves out the images, and needs no tokenizer.
            cache_dtype: of keys and values, such as bfloat16 to save memory; None: that of the computation.

        Raises:
            ValueError: labels, seeds or settings that cannot be.
            CheckpointError: images without a tokenizer that makes them.
        """
        classes = check_labels(labels, self.classes, self.config.class_names)
        numbers = np.array(check_seeds(seed, seeds, len(classes)), np.uint32)
        settings = check_sampling(sampling, self.config)
        tokenizer = self.tokenizer if images else None
        order = "lsb_first" if tokenizer is None else bit_order_of(tokenizer.config)
        dtype = None if cache_dtype is None else jnp.dtype(cache_dtype)
        if dtype is not None:
            check_cache_dtype(dtype)
        keys = jax.vmap(jax.random.key)(numbers)
        tokens = self._generate(self._weights, classes, keys, sampling=settings, cache_dtype=dtype)
        grid = self.config.model.grid
        ids = jnp.asarray(join_ids(np.asarray(tokens), self.config.model.vocabularies, order).reshape(-1, grid, grid))
        return Samples(ids, None if tokenizer is None else tokenizer.decode(ids))

    def _program(
        self, weights: dict[str, Array], labels: Array, keys: PRNGKeyArray, *, sampling: Sampling, cache_dtype: Any
    ) -> Array:
        return generate(self._network.bind(weights), labels, keys, sampling, cache_dtype)
