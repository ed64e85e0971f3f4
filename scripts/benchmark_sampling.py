"""Compare our samplers with the plain way of sampling, and with what the memory allows.

    python scripts/benchmark_sampling.py [--quick] [--model ibq_generator_B] [--batch 2] [--steps 32]

The sizes are those of a published generator, the weights random and the same for all. Every measurement is a fresh
process; the implementations take turns, so that whatever else the machine does meets all of them, and the best time of
each counts. Processor time, of all threads together, stands beside it, and so does the time in which the weights and
the filled part of the cache can be read once, at the bandwidth that is measured in the same run. The last line is one
JSON object: `jax_vs_baseline` and `torch_vs_baseline` say how many times faster ours are, `fraction_of_bound` is the
bound over the time of the faster of ours, 1 at best.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sampling_baselines import IMPLEMENTATIONS, Case, bandwidth, bytes_per_step, greedy

ORDER = ("plain_torch", "ours_torch", "ours_jax")


def measure(case: Case) -> dict[str, Any]:
    """Run one case in this process: best and median seconds of a whole call, processor time, and greedy tokens."""
    use_cores(case.cores)
    start = time.perf_counter()
    generate = IMPLEMENTATIONS[case.implementation](case)
    generate(case)
    ready = time.perf_counter() - start
    times, worked = [], []
    for _ in range(case.repeats):
        start, before = time.perf_counter(), time.process_time()
        generate(case)
        times.append(time.perf_counter() - start)
        worked.append(time.process_time() - before)
    tokens = generate(greedy(case)).reshape(-1).tolist()
    median = float(np.median(times))
    return {"best": min(times), "median": median, "processor": min(worked), "ready": ready, "tokens": tokens}


def use_cores(count: int) -> None:
    """Keep this process to some of the cores; 0 leaves all."""
    if count:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def child(arguments: list[str], device: str) -> dict[str, Any]:
    """Run this script again with other arguments and return what it printed last."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"} if device == "cpu" else {**os.environ}
    command = [sys.executable, str(Path(__file__).resolve()), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"measurement {arguments} failed with {done.returncode}:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().rpartition("\n")[2])
    return result


def run(base: Case, rounds: int) -> tuple[dict[str, dict[str, Any]], dict[str, float]]:
    """(best of all rounds per implementation, best bandwidth per way of measuring it), in turns."""
    results: dict[str, dict[str, Any]] = {}
    rates: dict[str, float] = {}
    for number in range(rounds):
        for name, rate in child(["--bandwidth", base.device, str(base.cores)], base.device).items():
            rates[name] = max(rate, rates.get(name, 0.0))
        for implementation in ORDER:
            case = Case(**{**asdict(base), "implementation": implementation})
            row = child(["--case", json.dumps(asdict(case))], base.device)
            print(
                f"round {number + 1}: {implementation:12} {1e3 * row['best'] / base.steps:8.1f} ms/step best, "
                f"{1e3 * row['median'] / base.steps:8.1f} median, {1e3 * row['processor'] / base.steps:8.1f} ms of "
                f"processor time; ready after {row['ready']:.1f} s",
                flush=True,
            )
            before = results.get(implementation, row)
            results[implementation] = {**row, **{key: min(row[key], before[key]) for key in ("best", "processor")}}
    return results, rates


def same_tokens(results: dict[str, dict[str, Any]]) -> float:
    """Share of greedy tokens that all implementations agree on: rounding alone may tell them apart."""
    tokens = np.array([row["tokens"] for row in results.values()])
    return float((tokens == tokens[0]).all(axis=0).mean())


def summarize(base: Case, results: dict[str, dict[str, Any]], rates: dict[str, float], load: float) -> dict[str, Any]:
    """Print the table and return the figures."""
    weights, cache = bytes_per_step(base)
    bound = (weights + cache) / max(rates.values())
    steps = {name: row["best"] / base.steps for name, row in results.items()}
    positions = base.transformer.tokens
    print(f"\n{'implementation':16} {'ms/step':>9} {'processor':>10} {'images/s':>9} {'of the bound':>13}")
    for name, value in [*steps.items(), ("memory bound", bound)]:
        worked = f"{1e3 * results[name]['processor'] / base.steps:10.1f}" if name in results else f"{'-':>10}"
        print(f"{name:16} {1e3 * value:9.1f} {worked} {base.batch / (positions * value):9.4f} {bound / value:12.0%}")
    described = ", ".join(f"{name} {rate / 1e9:.1f}" for name, rate in rates.items())
    print(f"bandwidth in GB/s: {described}; a step reads {weights / 1e6:.0f} MB of weights, {cache / 1e6:.0f} of cache")
    ours = {name: steps[f"ours_{name}"] for name in ("jax", "torch")}
    return {
        "model": base.model,
        "device": base.device,
        "dtype": base.dtype,
        "batch": base.batch,
        "steps": base.steps,
        "cpu_cores": base.cores or os.cpu_count(),
        # A load above zero before the start means that other work disturbed the times.
        "load_before": round(load, 2),
        "jax_vs_baseline": round(steps["plain_torch"] / ours["jax"], 2),
        "torch_vs_baseline": round(steps["plain_torch"] / ours["torch"], 2),
        "fraction_of_bound": round(bound / min(ours.values()), 3),
        "fraction_of_bound_jax": round(bound / ours["jax"], 3),
        "fraction_of_bound_torch": round(bound / ours["torch"], 3),
        "bound_ms": round(1e3 * bound, 2),
        "bandwidth_gb_per_s": round(max(rates.values()) / 1e9, 2),
        **{f"{name}_ms": round(1e3 * value, 2) for name, value in steps.items()},
        **{f"{name}_processor_ms": round(1e3 * row["processor"] / base.steps, 2) for name, row in results.items()},
        "same_greedy_tokens": same_tokens(results),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round instead of three")
    parser.add_argument("--model", default=Case.model, help="a published generator whose sizes are taken")
    parser.add_argument("--batch", type=int, default=Case.batch, help="samples; guidance doubles the rows")
    parser.add_argument("--steps", type=int, default=Case.steps, help="positions per call, of those of the grid")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default=Case.dtype)
    parser.add_argument("--device", default=Case.device, help="cpu, or cuda for both frameworks")
    parser.add_argument("--cores", type=int, default=0, help="use only so many; 1 is what other work disturbs least")
    parser.add_argument("--case", metavar="JSON", help=argparse.SUPPRESS)
    parser.add_argument("--bandwidth", nargs=2, metavar=("DEVICE", "CORES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(Case(**json.loads(arguments.case)))))
        return
    if arguments.bandwidth:
        device, cores = arguments.bandwidth
        use_cores(int(cores))
        print(json.dumps(bandwidth(device=device)))
        return
    load = os.getloadavg()[0]
    base = Case(
        "plain_torch",
        model=arguments.model,
        batch=arguments.batch,
        steps=arguments.steps,
        dtype=arguments.dtype,
        device=arguments.device,
        cores=arguments.cores,
        repeats=2 if arguments.quick else 5,
    )
    results, rates = run(base, 1 if arguments.quick else 3)
    print(json.dumps(summarize(base, results, rates, load)))


if __name__ == "__main__":
    main()
