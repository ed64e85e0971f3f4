"""`python -m voken_jax.sample`: `voken sample` in JAX."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from voken_common.commands.main import run_module


def main(arguments: list[str] | None = None) -> int:
    """Run the command; exit status as `voken_common.commands.main` says."""
    return run_module("sample", "jax", arguments)


def launched() -> tuple[int, int]:
    """Index and number of the processes that share the work, where the options do not say: this one alone."""
    return 0, 1


def open_generator(options: argparse.Namespace) -> Any:
    """Open the generator of the options, as a `voken_jax.generator.arrays.Arrays`."""
    from voken_jax.generator.arrays import Arrays

    return Arrays.open(options)


if __name__ == "__main__":
    sys.exit(main())
