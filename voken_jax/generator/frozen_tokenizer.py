"""A trained tokenizer beside a generator in training: it encodes images as they come, and decodes samples to be seen.

Shape legend: B batch, H/W pixels, T tokens, S sub-tokens per position.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from voken_common.config.schema.generator import GeneratorConfig
from voken_common.data.generator_data import require_fitting_tokenizer, require_same_tokenizer
from voken_common.data.tokens.format import bit_order_of, join_ids, sub_tokens
from voken_jax.models.functional import Weights
from voken_jax.parallel.sharding import batch_sharding, replicated
from voken_jax.quantizers.configured import encode_indices
from voken_jax.tokenizer.api import Tokenizer
from voken_jax.tokenizer.state import build_autoencoder


class FrozenTokenizer:
    """Return the tokenizer of a generator's configuration.

    Args:
        config: the generator's run.
        mesh: where images to be encoded are.
        place: its checkpoint; None: where the configuration says.

    Raises:
        CheckpointError: no such checkpoint, or not what the model is for.
        DataError: it is not the tokenizer that made the shards.
    """

    def __init__(self, config: GeneratorConfig, mesh: Mesh, place: Path | None = None):
        assert config.tokenizer is not None
        self.tokenizer, self._model = Tokenizer.load(place or config.tokenizer), config.model
        require_fitting_tokenizer(config, self.tokenizer.config)
        self.fingerprint = self.tokenizer.fingerprint()
        require_same_tokenizer(config, self.fingerprint)
        self._mesh, self._network = mesh, build_autoencoder(self.tokenizer.config)
        self._weights: Weights | None = None
        self._program = jax.jit(self._tokens, out_shardings=batch_sharding(mesh))

    def encode(self, images: Float[Array, "B H W 3"]) -> Int[Array, "B T S"]:
        """Tokens of images in [-1, 1], which are split over the mesh by samples."""
        if self._weights is None:
            # From the host: devices of other processes take no array of this one's.
            local = {name: np.asarray(weight) for name, weight in self.tokenizer.weights.items()}
            self._weights = jax.device_put(local, replicated(self._mesh))
        return self._program(self._weights, images)

    def decode(self, tokens: Int[np.ndarray, "B T S"]) -> Float[np.ndarray, "B H W 3"]:
        """Images in [-1, 1], computed on one device."""
        grid = self._model.grid
        ids = join_ids(tokens, self._model.vocabularies, bit_order_of(self.tokenizer.config)).reshape(-1, grid, grid)
        return np.asarray(self.tokenizer.decode(ids))

    def _tokens(self, weights: Weights, images: Array) -> Array:
        model = self._network.bind(weights)
        ids = encode_indices(self.tokenizer.config.quantizer, model.encode(images), model.codebook)
        ids = ids.reshape(ids.shape[0], -1)
        return jnp.stack(sub_tokens(ids, self._model.vocabularies, bit_order_of(self.tokenizer.config)), axis=-1)
