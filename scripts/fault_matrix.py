"""Make the faults that long runs meet, for real, and check what is left: `python scripts/fault_matrix.py`.

A tiny tokenizer is trained in JAX and in PyTorch, is killed, gets damaged files, full disks, lost processes and bad
data, and must end as the run that met nothing of it, or with an error that says what happened. A tiny generator meets
some of it too.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from faults import files, generators, inputs, processes
from faults.files import NotHere
from faults.frameworks import DEVICES, ROOT, Failed, Framework


class Fault(NamedTuple):
    """One row of the matrix."""

    name: str
    run: Callable[[Framework], str]
    quick: bool = False


FAULTS = (
    Fault("SIGKILL in training", processes.killed_in_training),
    Fault("SIGKILL while saving", processes.killed_in_saving),
    Fault("SIGTERM", processes.terminated),
    Fault("SIGTERM to one of two processes", processes.terminated_together),
    Fault("lost process", processes.lost_process),
    Fault("lost first process", processes.lost_first_process),
    Fault("resume on other devices", processes.other_devices),
    Fault("flipped bit in an array", files.flipped_array, quick=True),
    Fault("truncated array", files.truncated_array),
    Fault("damaged metadata", files.damaged_metadata),
    Fault("damaged meta", files.damaged_meta),
    Fault("damaged data position", files.damaged_position, quick=True),
    Fault("damaged checksums", files.damaged_checksums),
    Fault("damaged step asked for", files.asked_for, quick=True),
    Fault("all steps damaged", files.all_damaged, quick=True),
    Fault("fuzzed checkpoints", files.fuzzed_checkpoints),
    Fault("full disk", files.full_disk, quick=True),
    Fault("full disk by limit", files.full_disk_by_limit),
    Fault("read-only directory", files.read_only),
    Fault("clock backwards", files.clock_backwards),
    Fault("two runs", files.two_runs),
    Fault("held directory", files.lock_in_process, quick=True),
    Fault("damaged images", inputs.damaged_images),
    Fault("tar cut in half", inputs.cut_tar),
    Fault("NaN batch", inputs.not_finite),
    Fault("NaN batches skipped", inputs.skipped),
    Fault("generator: SIGKILL in training", generators.on(processes.killed_in_training)),
    Fault("generator: flipped bit", generators.on(files.flipped_array)),
    Fault("generator: batches skipped", generators.skipped),
)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only faults that need no process of their own")
    parser.add_argument("--framework", choices=("jax", "torch", "both"), default="both")
    parser.add_argument("--only", metavar="NAME", help="only faults whose name contains this")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Print a row per fault and framework; exit status 0 if all passed."""
    options = parse(arguments)
    chosen = [f for f in FAULTS if (f.quick or not options.quick) and (options.only or "").lower() in f.name.lower()]
    if not chosen:
        print(f"no fault is named like {options.only!r}; there are: {', '.join(fault.name for fault in FAULTS)}")
        return 2
    names = [fault.name for fault in chosen]
    if options.framework == "both":
        # Their rows wait for processes most of the time.
        with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
            outcomes = sum(pool.map(_rows, ("jax", "torch"), (names, names)), Counter())
    else:
        outcomes = _rows(options.framework, names)
    if outcomes["not here"]:
        print(f"{outcomes['not here']} could not be made on this machine")
    print(f"{outcomes['ok']} passed, {outcomes['FAILED']} failed")
    return int(outcomes["FAILED"] > 0)


def _rows(name: str, faults: list[str]) -> Counter[str]:
    """Make some faults in a framework, one after the other; how often each outcome came."""
    _prepare()
    with tempfile.TemporaryDirectory(prefix="voken_faults_") as scratch:
        framework = Framework(name, Path(scratch))
        return Counter(_row(framework, fault) for fault in FAULTS if fault.name in faults)


def _row(framework: Framework, fault: Fault) -> str:
    begin = time.monotonic()
    try:
        outcome, note = "ok", fault.run(framework)
    except NotHere as error:
        outcome, note = "not here", str(error)
    except Failed as error:
        outcome, note = "FAILED", str(error)
    except Exception:  # whatever one fault meets must not keep the others from being made
        outcome, note = "FAILED", traceback.format_exc()
    print(f"{framework.name:6} {fault.name:32} {outcome:9} {time.monotonic() - begin:6.1f} s  {note}", flush=True)
    return outcome


def _prepare() -> None:
    """The simulated devices and the compilation cache that the commands use, for what runs in this process."""
    import functools

    import jax
    import torch

    from voken_jax.training import run as trainer

    # As in the commands that are started: numbers depend on how sums are split.
    torch.set_num_threads(1)
    # The commands would else begin to log to the terminal.
    logging.getLogger().addHandler(logging.NullHandler())
    logging.getLogger("absl").setLevel(logging.ERROR)
    if not jax._src.xla_bridge.backends_are_initialized():
        jax.config.update("jax_num_cpu_devices", DEVICES)
        jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "jax"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
        # Every run in this process trains the same program.
        trainer.build = functools.cache(trainer.build)


if __name__ == "__main__":
    sys.exit(main())
