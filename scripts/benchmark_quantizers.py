"""Compare the streaming quantizers with the dense way of writing them, in PyTorch and in JAX.

    python scripts/benchmark_quantizers.py [--quick] [--plot docs/quantizers.svg]

Every measurement is a fresh process on the CPU: forward and backward, the best time of a few calls, and the peak
memory of the first full-size call, as growth of the resident set over the process before that call (inputs, compiled
program and a warm-up at a small size come before it). For JAX the compiled program's own temporary size stands beside
it. Gradients are compared with a float64 computation that walks over the tokens with all codes at once. The last line
is one JSON object. Needs Linux (/proc).
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from quantizer_baselines import IMPLEMENTATIONS, Case, exact_gradients, make_inputs

MIB = 2**20
# How many code rows have their gradients compared: those with the largest gradients, and as many at random.
COMPARED_ROWS = 1024


def gradient_error(found: list[Any], exact_file: str) -> float:
    """Largest error of a gradient relative to its largest entry, over tokens and a fixed set of code rows."""
    errors = []
    with np.load(exact_file) as exact:
        # LFQ has no codes, hence one gradient.
        for name, gradient in zip(("tokens", "codes"), found, strict=False):
            values = np.asarray(gradient, np.float64) if name == "tokens" else np.asarray(gradient)[exact["rows"]]
            errors.append(float(np.abs(values - exact[name]).max() / np.abs(exact[name]).max()))
    return max(errors)


def resident(field: str) -> int:
    """VmRSS or VmHWM (its high-water mark) of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}: this benchmark needs Linux")


def measure(case: Case, exact_file: str) -> dict[str, Any]:
    """Run one case in this process."""
    runner = IMPLEMENTATIONS[case.implementation]
    small = replace(case, codes=2**8, dim=8, tokens=16)
    warm_up, _ = runner(small, make_inputs(small))
    warm_up()
    del warm_up
    call, temporary = runner(case, make_inputs(case))
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    start = time.perf_counter()
    gradients = call()
    times = [time.perf_counter() - start]
    peak = resident("VmHWM") - before
    error = gradient_error(gradients, exact_file) if case.compare else None
    del gradients
    for _ in range(case.repeats - 1):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return {**asdict(case), "seconds": min(times), "peak": peak, "temporary": temporary, "error": error}


def child(arguments: list[str], environment: dict[str, str]) -> str:
    """Run this script again with other arguments and return the last line it printed."""
    command = [sys.executable, str(Path(__file__).resolve()), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"measurement {arguments} failed with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout.strip().rpartition("\n")[2]


def run_cases(cases: list[Case]) -> list[dict[str, Any]]:
    """Every case in its own process; exact gradients once per problem, in a process of their own."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    results = []
    print(f"{'case':34} {'implementation':14} {'seconds':>9} {'peak MiB':>9} {'temp MiB':>9} {'grad error':>10}")
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            exact_file = str(Path(folder) / f"{case.kind}-{case.codes}-{case.dim}-{case.tokens}.npz")
            text = json.dumps(asdict(case))
            if case.compare and not Path(exact_file).exists():
                child(["--exact", text, exact_file], environment)
            row = json.loads(child(["--case", text, exact_file], environment))
            results.append(row)
            temporary = "-" if row["temporary"] is None else f"{row['temporary'] / MIB:.0f}"
            error = "-" if row["error"] is None else f"{row['error']:.1e}"
            print(
                f"{case.label:34} {case.implementation:14} {row['seconds']:9.3f} {row['peak'] / MIB:9.0f} "
                f"{temporary:>9} {error:>10}",
                flush=True,
            )
    return results


LFQ = Case("lfq", "ours_jax", codes=2**18, dim=18, tokens=1024, compare=True)
IBQ = Case("ibq", "ours_jax", codes=2**18, dim=256, tokens=512, compare=True)


def headline_cases(quick: bool) -> list[Case]:
    """The cases that the JSON keys are made of; of the first call of each only the memory is of interest."""
    repeats = 2 if quick else 3
    cases = []
    for base in (LFQ, IBQ):
        cases.append(replace(base, repeats=5 if base is LFQ else repeats))
        cases.append(replace(base, implementation="ours_torch", repeats=repeats))
        cases.append(replace(base, implementation="dense_torch", repeats=2))
        cases += [] if quick else [replace(base, implementation="dense_jax", repeats=2)]
        cases += [] if base is LFQ else [replace(base, implementation="flat_torch", repeats=2)]
    cases.append(replace(IBQ, tokens=4 * IBQ.tokens, repeats=1, compare=False))
    cases.append(replace(LFQ, codes=2**24, dim=24, repeats=repeats, compare=False))
    if not quick:
        cases.append(replace(IBQ, codes=2**20, dim=64, repeats=1, compare=False))
    return cases


def curve_cases() -> list[Case]:
    """Time and memory against K; dense only as far as its arrays stay modest."""
    cases = []
    for bits in range(10, 25, 2):
        names = ["ours_jax", "ours_torch"] + ["dense_torch", "dense_jax"] * (bits <= 18)
        cases += [Case("lfq", name, 2**bits, bits, 256, repeats=2) for name in names]
    for bits in range(10, 21, 2):
        names = ["ours_jax", "ours_torch"] + ["dense_torch", "dense_jax"] * (bits <= 18)
        cases += [Case("ibq", name, 2**bits, 64, 256, repeats=2) for name in names]
    return cases


def summarize(rows: list[dict[str, Any]], load: float) -> dict[str, Any]:
    """The figures that the README and the tests of a release look at."""

    def find(base: Case, implementation: str = "ours_jax", **changes: int) -> dict[str, Any] | None:
        wanted = asdict(replace(base, implementation=implementation, **changes))
        keys = ("kind", "implementation", "codes", "dim", "tokens")
        return next((row for row in rows if all(row[key] == wanted[key] for key in keys)), None)

    # A load above zero before the start means that other work disturbed the times.
    summary: dict[str, Any] = {"cpu_cores": os.cpu_count(), "load_before": round(load, 2)}
    for name, base in (("lfq", LFQ), ("ibq", IBQ)):
        ours = find(base)
        for suffix, implementation in (("", "dense_torch"), ("_jax", "dense_jax"), ("_flat", "flat_torch")):
            dense = find(base, implementation)
            if ours is None or dense is None:
                continue
            summary[f"{name}_speedup{suffix}"] = round(dense["seconds"] / ours["seconds"], 2)
            summary[f"{name}_memory_ratio{suffix}"] = round(dense["peak"] / max(ours["peak"], MIB), 2)
            summary[f"{name}_dense_grad_error{suffix}"] = dense["error"]
        if ours is not None:
            summary[f"{name}_seconds"], summary[f"{name}_peak_mib"] = ours["seconds"], round(ours["peak"] / MIB, 1)
            summary[f"{name}_grad_error"] = ours["error"]
        torch, dense = find(base, "ours_torch"), find(base, "dense_torch")
        if torch and dense:
            summary[f"{name}_torch_speedup"] = round(dense["seconds"] / torch["seconds"], 2)
            summary[f"{name}_torch_memory_ratio"] = round(dense["peak"] / max(torch["peak"], MIB), 2)
            summary[f"{name}_torch_grad_error"] = torch["error"]
    wide, large, huge = find(IBQ, tokens=4 * IBQ.tokens), find(LFQ, codes=2**24, dim=24), find(IBQ, codes=2**20, dim=64)
    ours = find(IBQ)
    if wide and ours:
        summary["ibq_memory_growth"] = round(wide["peak"] / ours["peak"], 3)
    for name, row in (("lfq_dim24", large), ("ibq_2e20", huge)):
        if row:
            summary[f"{name}_seconds"], summary[f"{name}_peak_mib"] = row["seconds"], round(row["peak"] / MIB, 1)
    return summary


def plot(rows: list[dict[str, Any]], path: str) -> None:
    """Time and peak memory against K, one column per quantizer."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(9, 6), sharex="col")
    for column, kind in enumerate(("lfq", "ibq")):
        for implementation in ("ours_jax", "ours_torch", "dense_torch", "dense_jax"):
            chosen = [r for r in rows if r["kind"] == kind and r["implementation"] == implementation]
            codes = [r["codes"] for r in chosen]
            label = implementation.replace("_", ", ")
            axes[0, column].loglog(codes, [r["seconds"] for r in chosen], "o-", base=2, label=label)
            axes[1, column].loglog(codes, [max(r["peak"] / MIB, 1) for r in chosen], "o-", base=2, label=label)
        axes[0, column].set_title(kind.upper() + (" (D = log2 K)" if kind == "lfq" else " (D = 64)") + ", 256 tokens")
        axes[1, column].set_xlabel("codes K")
    axes[0, 0].set_ylabel("seconds, forward + backward")
    axes[1, 0].set_ylabel("peak extra memory, MiB")
    axes[0, 0].legend()
    figure.tight_layout()
    figure.savefig(path)


def write_exact(case: Case, path: str) -> None:
    """Save the exact gradients of the tokens and of a fixed set of code rows that holds the largest ones."""
    tokens, *codes = exact_gradients(case, make_inputs(case))
    arrays = {"tokens": tokens}
    if codes:
        largest = np.argsort(-np.abs(codes[0]).max(axis=1), kind="stable")[:COMPARED_ROWS]
        others = np.random.default_rng(1).integers(0, case.codes, COMPARED_ROWS)
        arrays["rows"] = np.unique(np.concatenate([largest, others]))
        arrays["codes"] = codes[0][arrays["rows"]]
    np.savez(path, **arrays)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two calls each, without dense JAX and K = 2^20")
    parser.add_argument("--plot", metavar="FILE", help="also measure time and memory against K and draw them here")
    parser.add_argument("--case", nargs=2, metavar=("JSON", "EXACT"), help=argparse.SUPPRESS)
    parser.add_argument("--exact", nargs=2, metavar=("JSON", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(Case(**json.loads(arguments.case[0])), arguments.case[1])))
        return
    if arguments.exact:
        write_exact(Case(**json.loads(arguments.exact[0])), arguments.exact[1])
        return
    load = os.getloadavg()[0]
    rows = run_cases(headline_cases(arguments.quick))
    if arguments.plot:
        plot(run_cases(curve_cases()), arguments.plot)
    print(json.dumps(summarize(rows, load)))


if __name__ == "__main__":
    main()
