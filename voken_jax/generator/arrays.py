"""A generator for commands: NumPy arrays in and out."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from voken_common.config.schema.sampling import Sampling
from voken_common.pixels import to_uint8
from voken_jax.generator.api import Generator
from voken_jax.parallel.platform import prepare


class Arrays:
    """A generator that takes and gives NumPy arrays."""

    def __init__(self, generator: Generator, cache_dtype: str | None):
        self.config, self.framework = generator.config, "jax"
        self.fingerprints = {"generator": generator.fingerprint(), "tokenizer": generator.tokenizer.fingerprint()}
        self.image_size = generator.config.model.grid * generator.tokenizer.downsampling
        self._generator, self._cache_dtype = generator, cache_dtype

    @classmethod
    def open(cls, options: argparse.Namespace) -> Arrays:
        """Open the generator of the options of `voken sample`."""
        prepare(options.device)
        generator = Generator.load(
            options.checkpoint,
            options.tokenizer,
            step=options.step,
            weights=options.weights,
            precision=options.precision,
            verify=options.checksums,
        )
        return cls(generator, options.cache_dtype)

    def draw(self, labels: np.ndarray, seeds: Sequence[int], sampling: Sampling) -> np.ndarray:
        """Images of classes, as bytes."""
        samples = self._generator.sample(labels, seeds=seeds, sampling=sampling, cache_dtype=self._cache_dtype)
        return to_uint8(np.asarray(samples.images))
