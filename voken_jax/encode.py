"""Turn images into tokens: `python -m voken_jax.encode --checkpoint TOKENIZER --data FOLDER --output DIR`.

Writes token shards, which generators are trained on. The command may be killed at any time; the same command goes on,
and the shards are those of an undisturbed run. All devices are used, and several processes share the work: start each
with --process-index I --process-count P. `--decode DIR` turns shards back into images. docs/tokens.md says more.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from voken_common.commands import encode as tokens_command
from voken_common.config.data import DataConfig
from voken_common.config.tokenizer import MeshConfig
from voken_common.data.tokens import encode as tokens_encoding
from voken_common.data.tokens.encode import Encoding
from voken_common.data.tokens.format import TokenInfo
from voken_jax.parallel.sharding import batch_sharding, make_mesh, replicated
from voken_jax.tokenizer.api import Tokenizer


def encode_dataset(
    tokenizer: Tokenizer, data: DataConfig, output: str | Path, encoding: Encoding | None = None
) -> TokenInfo | None:
    """`voken_common.data.tokens.encode.encode_dataset` for a JAX tokenizer."""
    return tokens_encoding.encode_dataset(Arrays(tokenizer), data, output, encoding)


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done, 2 input that cannot be used, 130 interrupted."""
    options = tokens_command.build_parser("voken_jax.encode", __doc__).parse_args(arguments)
    return tokens_command.run(options, _load)


class Arrays:
    """A tokenizer that takes and gives NumPy arrays, and spreads what it encodes over all devices of this process."""

    def __init__(self, tokenizer: Tokenizer):
        self.config, self.downsampling = tokenizer.config, tokenizer.downsampling
        self.fingerprint = tokenizer.fingerprint
        self.decode = lambda ids: np.asarray(tokenizer.decode(ids))
        self._alone, self._mesh = tokenizer, make_mesh(MeshConfig(), jax.local_devices())
        self._spread: Tokenizer | None = None

    def encode(self, images: Float[np.ndarray, "B H W 3"]) -> Int[np.ndarray, "B h w"]:
        """Ids of images; on one device unless the others can have equal shares."""
        devices = self._mesh.size
        if devices == 1 or len(images) % devices:
            return np.asarray(self._alone.encode(images))
        if self._spread is None:
            # Programs follow their arguments: with weights on all devices and images split over them, so do these.
            self._spread = Tokenizer(self.config, jax.device_put(self._alone.weights, replicated(self._mesh)))
        return np.asarray(self._spread.encode(jax.device_put(images, batch_sharding(self._mesh))))


def _load(checkpoint: str, step: Any, weights: Any, verify: bool) -> Arrays:
    return Arrays(Tokenizer.load(checkpoint, step=step, weights=weights, verify=verify))


if __name__ == "__main__":
    sys.exit(main())
