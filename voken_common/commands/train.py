"""Train a tokenizer or a generator.

The same command continues an interrupted run. Ctrl-C (or SIGTERM) ends the current step, writes a checkpoint and stops.
Several hosts with JAX: the same command on each of them (docs/scaling.md, scripts/launch_slurm.sh, launch_tpu.sh).
Several devices with PyTorch: torchrun --nproc-per-node N -m voken_torch.train --config FILE, one process each.
--set mesh.fsdp=M splits weights and moments over M devices in both.

Exit status: 0 done or stopped, 2 input that cannot be used, 3 a run that diverged, 4 a process that was lost.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from voken_common.commands.frameworks import TITLES, Framework, module_of
from voken_common.commands.options import add_device, add_overrides

LOST_AFTER = 100
_BUDGET = ("peak_tflops", "utilisation", "link_gbytes")
_PROCESSES = ("distributed", "coordinator", "process_count", "process_index", "lost_after")
_ONLY: dict[Framework, tuple[str, ...]] = {
    "jax": ("dry_run", "cpu_devices", *_BUDGET, *_PROCESSES),
    "torch": ("fused", "deterministic"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of both frameworks; `run` refuses those of the other one."""
    parser.add_argument("--config", required=True, help="YAML file, for example configs/quickstart_lfq.yaml")
    parser.add_argument("--workdir", help="folder of all that is written; default runs/<name of the configuration>")
    add_overrides(parser, text="override a setting")
    parser.add_argument(
        "--profile", type=int, nargs="?", const=5, default=0, metavar="STEPS", help="trace so many steps, 5 if not said"
    )
    parser.add_argument(
        "--allow",
        action="append",
        choices=("data",),
        default=[],
        help="go on though this changed since the checkpoint: data (images added or removed), whose order begins anew",
    )
    parser.add_argument(
        "--replay", type=Path, metavar="FILE", help="train nothing: show what a kept failed_batch_<step>.npz does"
    )
    add_device(parser)
    torch = parser.add_argument_group("with PyTorch only")
    torch.add_argument("--fused", action="store_true", help="the device's fused attention and optimizer")
    torch.add_argument(
        "--deterministic", action="store_true", help="repeatable results and no shortened float32 (TF32, HF32)"
    )
    jax = parser.add_argument_group("with JAX only")
    jax.add_argument(
        "--dry-run", action="store_true", help="build and compile, report parameters, memory and FLOPs, train nothing"
    )
    jax.add_argument("--cpu-devices", type=int, metavar="N", help="use N simulated CPU devices instead of real ones")
    budget = parser.add_argument_group(
        "with JAX only: what --dry-run expects of devices with these figures, which it does not measure"
    )
    budget.add_argument(
        "--peak-tflops", type=float, help="TFLOP/s of one device by its data sheet: 989 for an H100 in bf16"
    )
    budget.add_argument("--utilisation", type=float, default=0.4, help="share of the peak that is reached")
    budget.add_argument("--link-gbytes", type=float, help="GB/s that one device sends to others; default: not counted")
    add_distributed(parser)


def add_distributed(parser: argparse.ArgumentParser) -> None:
    """Options by which several processes of one JAX run find each other; see `voken_jax.parallel.distributed`."""
    group = parser.add_argument_group(
        "with JAX only: several processes",
        "Slurm and Open MPI are recognised without options; --distributed is for TPU pods and Kubernetes; elsewhere "
        "--coordinator, --process-count (the same for all) and --process-index say who takes part.",
    )
    group.add_argument("--distributed", action="store_true", help="join the processes that the environment describes")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0 and a free port there")
    group.add_argument("--process-count", type=int, metavar="N", help="number of processes")
    group.add_argument("--process-index", type=int, metavar="I", help="number of this process, from 0")
    group.add_argument(
        "--lost-after",
        type=int,
        default=LOST_AFTER,
        metavar="SECONDS",
        help="a process that is silent for so long is lost, which ends the run",
    )


def run(options: argparse.Namespace) -> int:
    """Train in the framework of `options`."""
    defaults = argparse.ArgumentParser()
    add_arguments(defaults)
    for framework, names in _ONLY.items():
        for name in names:
            if framework != options.framework and getattr(options, name) != defaults.get_default(name):
                raise ValueError(
                    f"--{name.replace('_', '-')} is for {TITLES[framework]}, and this run is in "
                    f"{TITLES[options.framework]}: leave it out, or use voken train --framework {framework}"
                )
    from voken_common.checkpoints.steps import require_framework
    from voken_common.config.loading import load_any_config

    # Before a framework is imported, which takes seconds: most mistakes are in what the user has just written.
    config = load_any_config(options.config, options.overrides)
    if not options.dry_run:
        require_framework(Path(options.workdir or Path("runs") / config.name), options.framework)
    status: int = module_of(options, "train").run(options)
    return status
