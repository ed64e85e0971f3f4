"""Train a tokenizer or a generator: `python -m voken_torch.train --config FILE [--workdir DIR] [--set key=value ...]`.

Several devices: `torchrun --nproc-per-node N -m voken_torch.train --config FILE`, one process each; `--set mesh.fsdp=M`
splits weights and moments over M of them. The same command continues an interrupted run. Ctrl-C or SIGTERM ends the
current step, writes a checkpoint and stops.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from voken_torch.device import runtime as device


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m voken_torch.train", description=__doc__)
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
    parser.add_argument("--device", choices=device.NAMES, default="auto", help="auto: an NPU, else CUDA, else the CPU")
    parser.add_argument("--fused", action="store_true", help="the device's fused attention and optimizer")
    parser.add_argument(
        "--deterministic", action="store_true", help="repeatable results and no shortened float32 (TF32, HF32)"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done or stopped on request, 2 for input that cannot be used, 3 for a run that diverged."""
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("absl").setLevel(logging.WARNING)

    from voken_common.checkpoints.downloads import WeightsError
    from voken_common.config.loading import load_any_config
    from voken_common.errors import NonFiniteError
    from voken_torch.training.replay import replay
    from voken_torch.training.run import train

    try:
        config = load_any_config(options.config, options.overrides)
        if options.deterministic:
            device.set_numerics(device.resolve(options.device), full_precision=True, deterministic=True)
        with device.session(options.device, fused=options.fused) as runtime:
            workdir = Path(options.workdir or Path("runs") / config.name)
            if options.replay:
                replay(config, workdir, options.replay, runtime)
            else:
                train(config, workdir, runtime, options.profile)
    except NonFiniteError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    except (ValueError, OSError, WeightsError, device.DeviceError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
