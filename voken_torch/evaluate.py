"""`python -m voken_torch.evaluate`: `voken evaluate` in PyTorch."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from voken_common.commands.main import run_module
from voken_common.evaluation.engine import MetricWeights
from voken_torch.reconstruct import open_tokenizer
from voken_torch.sample import launched, open_generator

__all__ = ["launched", "main", "open_engine", "open_generator", "open_tokenizer"]


def main(arguments: list[str] | None = None) -> int:
    """Run the command; exit status as `voken_common.commands.main` says."""
    return run_module("evaluate", "torch", arguments)


def open_engine(options: argparse.Namespace, weights: MetricWeights) -> Any:
    """Open the networks of metrics on the device of the options."""
    from voken_torch.device import runtime as device
    from voken_torch.evaluation.engine import Engine

    _, _, local = device.launched()
    return Engine(weights, device.Runtime(device.resolve(options.device, local)))


if __name__ == "__main__":
    sys.exit(main())
