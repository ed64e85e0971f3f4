"""A tokenizer for commands: NumPy arrays in and out, images channels last."""

from __future__ import annotations

import argparse

import torch

from voken_torch.device import runtime as device
from voken_torch.tokenizer.api import Tokenizer


class Arrays:
    """A tokenizer that takes and gives NumPy arrays, images channels last."""

    def __init__(self, tokenizer: Tokenizer):
        self.config, self.downsampling = tokenizer.config, tokenizer.downsampling
        self.time_downsampling = tokenizer.time_downsampling
        self.fingerprint = tokenizer.fingerprint
        self.encode = lambda images: tokenizer.encode(torch.from_numpy(images).movedim(-1, 1)).cpu().numpy()
        self.decode = lambda ids: tokenizer.decode(torch.from_numpy(ids)).movedim(1, -1).cpu().numpy()

    @classmethod
    def open(cls, options: argparse.Namespace) -> Arrays:
        """The tokenizer of the options of `voken_common.commands.options.add_checkpoint` and `add_device`."""
        _, _, local = device.launched()
        runtime = device.Runtime(device.resolve(options.device, local))
        return cls(
            Tokenizer.load(
                options.checkpoint,
                step=options.step,
                weights=options.weights,
                precision=options.precision,
                runtime=runtime,
                verify=options.checksums,
            )
        )
