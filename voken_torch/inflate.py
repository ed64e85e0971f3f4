"""`python -m voken_torch.inflate`: `voken inflate` in PyTorch."""

from __future__ import annotations

import sys

import numpy as np

from voken_common.checkpoints.steps import Weights
from voken_common.commands.main import run_module
from voken_common.config.schema.tokenizer import Config


def main(arguments: list[str] | None = None) -> int:
    """Run the command; exit status as `voken_common.commands.main` says."""
    return run_module("inflate", "torch", arguments)


def config_of(checkpoint: str) -> Config:
    """Read the configuration of a checkpoint."""
    from voken_torch.training.inflate import config_of as read

    return read(checkpoint)


def inflated(checkpoint: str, config: Config, weights: Weights | None) -> dict[str, np.ndarray]:
    """Make the weights of a video tokenizer of a checkpoint, as `voken_torch.training.inflate` does."""
    from voken_torch.training.inflate import inflated as make

    return make(checkpoint, config, weights)


if __name__ == "__main__":
    sys.exit(main())
