"""`python -m voken_jax.train`: `voken train` in JAX."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from voken_common.commands import main as command


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    return command.build_parser(command.find("train"), "jax").parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; exit status as `voken_common.commands.train` says."""
    return command.run_module("train", "jax", arguments)


def run(options: argparse.Namespace) -> int:
    """Train, replay or compile what `voken_common.commands.train` asks for; exit status as it says.

    A process that fails while others take part does not return from here: it ends without waiting for them.
    """
    from voken_jax.parallel import distributed

    return distributed.leave(command.guarded(_run, options))


def _run(options: argparse.Namespace) -> int:
    import jax

    from voken_common.config.loading import load_any_config
    from voken_common.errors import UnavailableError
    from voken_jax.dry_run.budget import machine_of
    from voken_jax.dry_run.command import dry_run
    from voken_jax.parallel import distributed
    from voken_jax.parallel.platform import keep_programs
    from voken_jax.training.run import replay, train

    keep_programs()
    if options.cpu_devices:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", options.cpu_devices)
    elif options.device != "auto":
        jax.config.update("jax_platforms", options.device)
    config = load_any_config(options.config, options.overrides)
    try:
        if options.dry_run:
            dry_run(config, machine_of(options))
            return 0
        with distributed.session(options):
            workdir = Path(options.workdir or Path("runs") / config.name)
            if options.replay:
                replay(config, workdir, options.replay)
            else:
                train(config, workdir, options.profile, options.allow)
    except (ValueError, OSError, RuntimeError) as error:
        if distributed.is_loss(error):
            print(f"error: {distributed.describe_lost(error)}", file=sys.stderr)
            return distributed.LOST
        if isinstance(error, RuntimeError) and not isinstance(error, (jax.errors.JaxRuntimeError, UnavailableError)):
            raise UnavailableError(str(error)) from error
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
