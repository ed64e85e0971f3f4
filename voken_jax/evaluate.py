"""`python -m voken_jax.evaluate`: `voken evaluate` in JAX."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from voken_common.commands.main import run_module
from voken_common.evaluation.engine import MetricWeights
from voken_jax.reconstruct import open_tokenizer
from voken_jax.sample import launched, open_generator

__all__ = ["launched", "main", "open_engine", "open_generator", "open_tokenizer"]


def main(arguments: list[str] | None = None) -> int:
    """Run the command; exit status as `voken_common.commands.main` says."""
    return run_module("evaluate", "jax", arguments)


def open_engine(options: argparse.Namespace, weights: MetricWeights) -> Any:
    """Open the networks of metrics on the device of the options."""
    from voken_jax.parallel.platform import prepare

    prepare(options.device)
    from voken_jax.evaluation.engine import Engine

    return Engine(weights)


if __name__ == "__main__":
    sys.exit(main())
