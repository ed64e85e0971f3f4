"""A tokenizer for commands: NumPy arrays in and out, on all devices of this process."""

from __future__ import annotations

import argparse

import jax
import numpy as np
from jaxtyping import Float, Int

from voken_common.config.schema.run import MeshConfig
from voken_jax.parallel.platform import prepare
from voken_jax.parallel.sharding import batch_sharding, make_mesh, replicated
from voken_jax.tokenizer.api import Tokenizer


class Arrays:
    """A tokenizer that takes and gives NumPy arrays, and spreads what it encodes over all devices of this process."""

    def __init__(self, tokenizer: Tokenizer):
        self.config, self.downsampling = tokenizer.config, tokenizer.downsampling
        self.time_downsampling = tokenizer.time_downsampling
        self.fingerprint = tokenizer.fingerprint
        self.decode = lambda ids: np.asarray(tokenizer.decode(ids))
        self._alone, self._mesh = tokenizer, make_mesh(MeshConfig(), jax.local_devices())
        self._spread: Tokenizer | None = None

    @classmethod
    def open(cls, options: argparse.Namespace) -> Arrays:
        """The tokenizer of the options of `voken_common.commands.options.add_checkpoint` and `add_device`."""
        prepare(options.device)
        return cls(
            Tokenizer.load(
                options.checkpoint,
                step=options.step,
                weights=options.weights,
                precision=options.precision,
                verify=options.checksums,
            )
        )

    def encode(self, images: Float[np.ndarray, "B *S 3"]) -> Int[np.ndarray, "B *s"]:
        """Ids of images or clips; on one device unless the others can have equal shares."""
        devices = self._mesh.size
        if devices == 1 or len(images) % devices:
            return np.asarray(self._alone.encode(images))
        if self._spread is None:
            # Programs follow their arguments: with weights on all devices and images split over them, so do these.
            self._spread = Tokenizer(self.config, jax.device_put(self._alone.weights, replicated(self._mesh)))
        return np.asarray(self._spread.encode(jax.device_put(images, batch_sharding(self._mesh))))
