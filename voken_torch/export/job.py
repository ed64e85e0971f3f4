"""`voken export` in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from voken_common.checkpoints.steps import Meta, Weights
from voken_common.errors import UserError
from voken_torch.checkpoints.load import load
from voken_torch.export.programs import Part, export
from voken_torch.tokenizer.api import Tokenizer


class Job:
    """A tokenizer and its exporter; arrays are NumPy, images channels last. See `voken_common.evaluation.exports`."""

    def __init__(self, tokenizer: Tokenizer, kind: Any):
        self.downsampling = tokenizer.downsampling
        self._tokenizer, self._kind = tokenizer, kind

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Encode with the tokenizer itself."""
        ids: np.ndarray = self._tokenizer.encode(torch.from_numpy(images).movedim(-1, 1)).cpu().numpy()
        return ids

    def decode(self, ids: np.ndarray) -> np.ndarray:
        """Decode with the tokenizer itself."""
        return np.moveaxis(np.asarray(self._tokenizer.decode(ids).cpu()), 1, -1)

    def export(self, part: str, target: Path) -> tuple[Callable[[np.ndarray], np.ndarray], str]:
        """Write a part; return the program read back from the file, and a sentence on the sizes that it accepts."""
        program = export(self._tokenizer, cast(Part, part), target, self._kind)
        if part == "encoder":
            return lambda images: program(np.ascontiguousarray(np.moveaxis(images, -1, 1))), program.dynamic
        return lambda ids: np.moveaxis(program(ids.astype(np.int64)), 1, -1), program.dynamic


def open_job(model: str, kind: str) -> Job:
    """Open a tokenizer for export.

    Raises:
        UserError: a video tokenizer, which has no export.
    """
    tokenizer = Tokenizer.load(model)
    if tokenizer.config.data.is_video:
        raise UserError(f"{model} is a tokenizer of videos: only image tokenizers can be exported")
    return Job(tokenizer, kind)


def read_weights(model: str, weights: Weights) -> tuple[Meta, dict[str, np.ndarray]]:
    """Read one set of weights by torch name, in torch layout.

    Raises:
        CheckpointError: there is no such checkpoint, or it lacks that set.
    """
    found = load(model, weights=weights)
    return found.meta, {name: weight.numpy() for name, weight in found.weights.items()}
