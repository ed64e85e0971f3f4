"""`python -m voken_torch.sample`: `voken sample` in PyTorch."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from voken_common.commands.main import run_module


def main(arguments: list[str] | None = None) -> int:
    """Run the command; exit status as `voken_common.commands.main` says."""
    return run_module("sample", "torch", arguments)


def launched() -> tuple[int, int]:
    """Index and number of the processes that share the work, as `torchrun` says it."""
    from voken_torch.device.runtime import launched as by_torchrun

    index, count, _ = by_torchrun()
    return index, count


def open_generator(options: argparse.Namespace) -> Any:
    """Open the generator of the options, as a `voken_torch.generator.arrays.Arrays`."""
    from voken_torch.generator.arrays import Arrays

    return Arrays.open(options)


if __name__ == "__main__":
    sys.exit(main())
