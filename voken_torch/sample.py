"""Draw images of classes: `python -m voken_torch.sample --checkpoint DIR --classes 207,360 --output DIR`.

Writes PNG files per class and a grid. `--npz samples.npz --num-per-class 50 --classes all` writes the file that the ADM
evaluator reads: one uint8 array `arr_0` (N, H, W, 3), shuffled. The command may be killed at any time; the same command
goes on. Several processes share the work: start them with torchrun, or one on each device with --process-index I
--process-count P. Without further options tokens are drawn as the checkpoint's configuration says. docs/sampling.md
says more.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from voken_common.commands import sample as sample_command
from voken_common.config.sampling import Sampling
from voken_common.pixels import to_uint8
from voken_torch.device import runtime as device
from voken_torch.generator.api import Generator


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done, 2 input that cannot be used, 130 interrupted."""
    rank, count, local = device.launched()
    parser = sample_command.build_parser("voken_torch.sample", __doc__, (rank, count))
    parser.add_argument("--device", choices=device.NAMES, default="auto", help="auto: an NPU, else CUDA, else the CPU")
    options = parser.parse_args(arguments)

    def load(options: argparse.Namespace, step: Any) -> Arrays:
        runtime = device.Runtime(device.resolve(options.device, local))
        generator = Generator.load(
            options.checkpoint,
            options.tokenizer,
            step=step,
            weights=options.weights,
            runtime=runtime,
            verify=options.checksums,
        )
        return Arrays(generator, options.cache_dtype)

    try:
        return sample_command.run(options, load)
    except device.DeviceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


class Arrays:
    """A generator that takes and gives NumPy arrays, images channels last."""

    def __init__(self, generator: Generator, cache_dtype: str | None):
        self.config, self.origin = generator.config, generator.origin
        self.image_size = generator.config.model.grid * generator.tokenizer.downsampling
        self._generator = generator
        self._cache_dtype = None if cache_dtype is None else getattr(torch, cache_dtype)

    def draw(self, labels: np.ndarray, seeds: Sequence[int], sampling: Sampling) -> np.ndarray:
        """Images of classes, as bytes."""
        samples = self._generator.sample(labels, seeds=seeds, sampling=sampling, cache_dtype=self._cache_dtype)
        return to_uint8(samples.images.movedim(1, -1).float().cpu().numpy())


if __name__ == "__main__":
    sys.exit(main())
