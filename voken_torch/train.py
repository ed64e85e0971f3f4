"""`python -m voken_torch.train`: `voken train` in PyTorch."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from voken_common.commands import main as command


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    return command.build_parser(command.find("train"), "torch").parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; exit status as `voken_common.commands.train` says."""
    return command.run_module("train", "torch", arguments)


def run(options: argparse.Namespace) -> int:
    """Train or replay what `voken_common.commands.train` asks for; exit status 0.

    Raises:
        ValueError, OSError, UnavailableError: input or a device that cannot be used.
        NonFiniteError: the run diverged.
    """
    from voken_common.config.loading import load_any_config
    from voken_torch.device import runtime as device
    from voken_torch.training.run import replay, train

    config = load_any_config(options.config, options.overrides)
    if options.deterministic:
        device.set_numerics(device.resolve(options.device), full_precision=True, deterministic=True)
    with device.session(options.device, fused=options.fused) as runtime:
        workdir = Path(options.workdir or Path("runs") / config.name)
        if options.replay:
            replay(config, workdir, options.replay, runtime)
        else:
            train(config, workdir, runtime, options.profile, options.allow)
    return 0


if __name__ == "__main__":
    sys.exit(main())
