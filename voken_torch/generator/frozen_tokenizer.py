"""A trained tokenizer beside a generator in training: it encodes images as they come, and decodes samples to be seen.

Shape legend: B batch, H/W pixels, T tokens, S sub-tokens per position.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from voken_common.config.schema.generator import GeneratorConfig
from voken_common.data.tokens.format import bit_order_of, join_ids, sub_tokens
from voken_torch.device.runtime import Runtime
from voken_torch.tokenizer.api import Tokenizer


class FrozenTokenizer:
    """Return the tokenizer that a generator's configuration names.

    Args:
        config: the generator's run.
        runtime: this process's device.
        place: its checkpoint; None: where the configuration says.

    Raises:
        CheckpointError: no such checkpoint, or not what the model is for.
        DataError: it is not the tokenizer that made the shards.
    """

    def __init__(self, config: GeneratorConfig, runtime: Runtime, place: Path | None = None):
        # Imported late: Grain loads JAX where JAX is installed.
        from voken_common.data.generator_data import require_fitting_tokenizer, require_same_tokenizer

        assert config.tokenizer is not None
        self.tokenizer, self._model = Tokenizer.load(place or config.tokenizer, runtime=runtime), config.model
        require_fitting_tokenizer(config, self.tokenizer.config)
        self.fingerprint = self.tokenizer.fingerprint()
        require_same_tokenizer(config, self.fingerprint)

    def encode(self, images: Float[Tensor, "B H W 3"]) -> Int[Tensor, "B T S"]:
        """Tokens (int32) of images in [-1, 1], on the device: nothing waits for it."""
        ids = self.tokenizer.encode(images.movedim(-1, 1)).flatten(1)
        return torch.stack(sub_tokens(ids, self._model.vocabularies, bit_order_of(self.tokenizer.config)), -1)

    def decode(self, tokens: Int[np.ndarray, "B T S"]) -> Float[np.ndarray, "B H W 3"]:
        """Images in [-1, 1]."""
        grid = self._model.grid
        ids = torch.from_numpy(join_ids(tokens, self._model.vocabularies, bit_order_of(self.tokenizer.config))).reshape(
            -1, grid, grid
        )
        return self.tokenizer.decode(ids).movedim(1, -1).float().cpu().numpy()
