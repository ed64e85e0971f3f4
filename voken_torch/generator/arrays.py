"""A generator for commands: NumPy arrays in and out, images channels last."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch

from voken_common.config.schema.sampling import Sampling
from voken_common.pixels import to_uint8
from voken_torch.device import runtime as device
from voken_torch.generator.api import Generator


class Arrays:
    """A generator that takes and gives NumPy arrays, images channels last."""

    def __init__(self, generator: Generator, cache_dtype: str | None):
        self.config, self.framework = generator.config, "torch"
        self.fingerprints = {"generator": generator.fingerprint(), "tokenizer": generator.tokenizer.fingerprint()}
        self.image_size = generator.config.model.grid * generator.tokenizer.downsampling
        self._generator = generator
        self._cache_dtype = None if cache_dtype is None else getattr(torch, cache_dtype)

    @classmethod
    def open(cls, options: argparse.Namespace) -> Arrays:
        """Open the generator of the options of `voken sample`."""
        _, _, local = device.launched()
        generator = Generator.load(
            options.checkpoint,
            options.tokenizer,
            step=options.step,
            weights=options.weights,
            precision=options.precision,
            runtime=device.Runtime(device.resolve(options.device, local)),
            verify=options.checksums,
        )
        return cls(generator, options.cache_dtype)

    def draw(self, labels: np.ndarray, seeds: Sequence[int], sampling: Sampling) -> np.ndarray:
        """Images of classes, as bytes."""
        samples = self._generator.sample(labels, seeds=seeds, sampling=sampling, cache_dtype=self._cache_dtype)
        return to_uint8(samples.images.movedim(1, -1).float().cpu().numpy())
