"""`python -m voken_jax.convert`: `voken convert` in JAX."""

from __future__ import annotations

import argparse
import logging
import sys

from voken_common.commands import main as command

DIFFERS = 4


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    return command.build_parser(command.find("convert"), "jax").parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; exit status as `voken_common.commands.convert` says."""
    return command.run_module("convert", "jax", arguments)


def run(options: argparse.Namespace) -> int:
    """Convert what `voken_common.commands.convert` asks for; exit status 0, or 4 where the result differs.

    Raises:
        ValueError, OSError: input that cannot be used.
    """
    logging.getLogger("absl").setLevel(logging.ERROR)
    import jax

    from voken_jax.conversion.run import convert

    # Accelerators would be of no use, and comparing needs full float32 products.
    jax.config.update("jax_platforms", "cpu")
    return 0 if convert(options) else DIFFERS


if __name__ == "__main__":
    sys.exit(main())
