"""`voken export` in JAX."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np

from voken_common.checkpoints.steps import Meta, Weights
from voken_common.checkpoints.weight_names import to_torch
from voken_common.errors import UserError
from voken_jax.checkpoints.load import load
from voken_jax.export.stablehlo import Part, export
from voken_jax.tokenizer.api import Tokenizer
from voken_jax.tokenizer.state import build_autoencoder


class Job:
    """A tokenizer and its exporter; arrays are NumPy, images channels last. See `voken_common.evaluation.exports`."""

    def __init__(self, tokenizer: Tokenizer):
        self.downsampling = tokenizer.downsampling
        self._tokenizer = tokenizer

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Encode with the tokenizer itself."""
        return np.asarray(self._tokenizer.encode(images))

    def decode(self, ids: np.ndarray) -> np.ndarray:
        """Decode with the tokenizer itself."""
        return np.asarray(self._tokenizer.decode(ids))

    def export(self, part: str, target: Path) -> tuple[Callable[[np.ndarray], np.ndarray], str]:
        """Write a part; return the program read back from the file, and a sentence on the sizes that it accepts."""
        program = export(self._tokenizer, cast(Part, part), target)
        return program, program.dynamic


def open_job(model: str, kind: str) -> Job:
    """Open a tokenizer for export to StableHLO, the only format of JAX.

    Raises:
        UserError: a video tokenizer, which has no export.
    """
    assert kind == "stablehlo", kind
    tokenizer = Tokenizer.load(model)
    if tokenizer.config.data.is_video:
        raise UserError(f"{model} is a tokenizer of videos: only image tokenizers can be exported")
    return Job(tokenizer)


def read_weights(model: str, weights: Weights) -> tuple[Meta, dict[str, np.ndarray]]:
    """Read one set of weights by torch name, in torch layout.

    Raises:
        CheckpointError: there is no such checkpoint, or it lacks that set.
    """
    found = load(model, lambda meta: build_autoencoder(meta.tokenizer), weights=weights)
    return found.meta, dict(to_torch({name: np.asarray(leaf) for name, leaf in found.weights.items()}))
