"""Draw images of classes: `python -m voken_jax.sample --checkpoint DIR --classes 207,360 --output DIR`.

Writes PNG files per class and a grid. `--npz samples.npz --num-per-class 50 --classes all` writes the file that the ADM
evaluator reads: one uint8 array `arr_0` (N, H, W, 3), shuffled. The command may be killed at any time; the same command
goes on. Several processes share the work: start one on each device with --process-index I --process-count P. Without
further options tokens are drawn as the checkpoint's configuration says. docs/sampling.md says more.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from voken_common.commands import sample as sample_command
from voken_common.config.sampling import Sampling
from voken_common.pixels import to_uint8
from voken_jax.generator.api import Generator


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done, 2 input that cannot be used, 130 interrupted."""
    options = sample_command.build_parser("voken_jax.sample", __doc__).parse_args(arguments)
    return sample_command.run(options, _load)


class Arrays:
    """A generator that takes and gives NumPy arrays."""

    def __init__(self, generator: Generator, cache_dtype: str | None):
        self.config, self.origin = generator.config, generator.origin
        self.image_size = generator.config.model.grid * generator.tokenizer.downsampling
        self._generator, self._cache_dtype = generator, cache_dtype

    def draw(self, labels: np.ndarray, seeds: Sequence[int], sampling: Sampling) -> np.ndarray:
        """Images of classes, as bytes."""
        samples = self._generator.sample(labels, seeds=seeds, sampling=sampling, cache_dtype=self._cache_dtype)
        return to_uint8(np.asarray(samples.images))


def _load(options: argparse.Namespace, step: Any) -> Arrays:
    generator = Generator.load(
        options.checkpoint, options.tokenizer, step=step, weights=options.weights, verify=options.checksums
    )
    return Arrays(generator, options.cache_dtype)


if __name__ == "__main__":
    sys.exit(main())
