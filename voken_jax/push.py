"""`python -m voken_jax.push`: `voken push` in JAX."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from voken_common.commands.main import run_module


def main(arguments: list[str] | None = None) -> int:
    """Run the command; exit status as `voken_common.commands.main` says."""
    return run_module("push", "jax", arguments)


def open_model(options: argparse.Namespace) -> Any:
    """Open the tokenizer or generator of the options, whichever the checkpoint is of."""
    from voken_common.checkpoints.steps import KindError
    from voken_jax.generator.api import Generator
    from voken_jax.tokenizer.api import Tokenizer

    settings: dict[str, Any] = {
        "step": options.step,
        "weights": options.weights,
        "precision": options.precision,
        "verify": options.checksums,
    }
    try:
        return Tokenizer.load(options.checkpoint, **settings)
    except KindError:
        return Generator.load(options.checkpoint, options.tokenizer, **settings)


if __name__ == "__main__":
    sys.exit(main())
