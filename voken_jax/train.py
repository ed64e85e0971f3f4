"""Train a tokenizer or a generator: `python -m voken_jax.train --config FILE [--workdir DIR] [--set key=value ...]`.

The same command continues an interrupted run. Ctrl-C (or SIGTERM) ends the current step, writes a checkpoint and stops.
Several hosts: the same command on each of them; see docs/scaling.md and scripts/launch_slurm.sh, launch_tpu.sh.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from voken_jax.parallel import distributed


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m voken_jax.train", description=__doc__)
    parser.add_argument("--config", required=True, help="YAML file, for example configs/quickstart_lfq.yaml")
    parser.add_argument("--workdir", help="where everything is written; default runs/<name of the configuration>")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="override a setting"
    )
    parser.add_argument(
        "--profile", type=int, nargs="?", const=5, default=0, metavar="STEPS", help="trace so many steps (default 5)"
    )
    parser.add_argument(
        "--replay", type=Path, metavar="FILE", help="train nothing: show what a kept failed_batch_<step>.npz does"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="build and compile, report parameters, memory and FLOPs, train nothing"
    )
    parser.add_argument("--cpu-devices", type=int, metavar="N", help="use N simulated CPU devices instead of real ones")
    budget = parser.add_argument_group(
        "what --dry-run expects of devices with these figures, which it does not measure"
    )
    budget.add_argument(
        "--peak-tflops", type=float, help="TFLOP/s of one device by its data sheet: 989 for an H100 in bf16"
    )
    budget.add_argument("--utilisation", type=float, default=0.4, help="share of the peak that is reached; default 0.4")
    budget.add_argument("--link-gbytes", type=float, help="GB/s that one device sends to others; default: not counted")
    distributed.add_options(parser)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done or stopped, 2 input that cannot be used, 3 a run that diverged, 4 a process that was lost."""
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("absl").setLevel(logging.WARNING)
    import jax

    if options.cpu_devices:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", options.cpu_devices)

    from voken_common.config.loading import load_any_config
    from voken_common.errors import NonFiniteError
    from voken_jax.dry_run.budget import machine_of
    from voken_jax.dry_run.command import dry_run
    from voken_jax.training.replay import replay
    from voken_jax.training.run import train

    try:
        config = load_any_config(options.config, options.overrides)
        if options.dry_run:
            dry_run(config, machine_of(options))
        else:
            with distributed.session(options):
                workdir = Path(options.workdir or Path("runs") / config.name)
                if options.replay:
                    replay(config, workdir, options.replay)
                else:
                    train(config, workdir, options.profile)
    except NonFiniteError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    except (ValueError, OSError, RuntimeError) as error:
        if distributed.is_loss(error):
            print(f"error: {distributed.describe_lost(error)}", file=sys.stderr)
            return distributed.LOST
        if isinstance(error, jax.errors.JaxRuntimeError):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(distributed.leave(main()))
