"""`python -m voken_torch.reconstruct`: `voken reconstruct` in PyTorch."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from voken_common.commands.main import run_module


def main(arguments: list[str] | None = None) -> int:
    """Run the command; exit status as `voken_common.commands.main` says."""
    return run_module("reconstruct", "torch", arguments)


def open_tokenizer(options: argparse.Namespace) -> Any:
    """Open the tokenizer of the options, as a `voken_torch.tokenizer.arrays.Arrays`."""
    from voken_torch.tokenizer.arrays import Arrays

    return Arrays.open(options)


if __name__ == "__main__":
    sys.exit(main())
