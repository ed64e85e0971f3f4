"""Time to encode a batch of photographs at full size, in both frameworks, beside plain PyTorch modules.

Every contender is a process of its own with the same seeded weights; they take turns, so that a busy machine is busy
for all. "command" is the library after what `voken ...` does at its start (voken_common.commands.start). Prints a table
and one JSON line. The median counts; seconds of processor time are less disturbed by others than those of the clock.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

MODELS = {"imagenet_lfqgan_256_L": "open_magvit2/imagenet_256.yaml", "ibq_16384": "ibq/imagenet_16384.yaml"}
CONTENDERS = ("plain", "torch", "torch command", "jax", "jax command")


def photographs(count: int, side: int) -> np.ndarray:
    """Crops of bundled photographs, (count, side, side, 3) in [-1, 1]."""
    from skimage import data

    from voken_common.pixels import from_uint8

    pictures = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]
    crops = [pictures[i % 4][20 : 20 + side, 100 : 100 + side, :3] for i in range(count)]
    return from_uint8(np.stack(crops))


def contender(name: str, model: str, count: int, side: int) -> Any:
    """A function that encodes the photographs once and gives the ids."""
    if name.endswith("command"):
        from voken_common.commands.start import keep_freed_memory

        keep_freed_memory()
    import torch

    from voken_common.config.loading import load_config
    from voken_torch.models.autoencoder import Autoencoder

    images = photographs(count, side)
    root = Path(__file__).resolve().parents[1] / "configs"
    config = load_config(root / MODELS[model], ["precision.compute_dtype=float32"])
    torch.manual_seed(0)
    weights = Autoencoder(config.model, config.quantizer).state_dict()
    if name == "plain":
        from encode_baselines import Plain

        plain = Plain(config.quantizer.kind, config.quantizer.codebook_size).eval()
        plain.load_state_dict({k: v for k, v in weights.items() if not k.startswith(("decoder", "post_quant"))})
        tensor = torch.from_numpy(images).movedim(-1, 1).contiguous()
        return lambda: plain(tensor).numpy()
    if name.startswith("torch"):
        from voken_torch import Tokenizer

        tokenizer = Tokenizer(config, weights)
        return lambda: tokenizer.encode(images).numpy()
    import jax.numpy as jnp

    from voken_common.checkpoints.weight_names import to_jax
    from voken_jax import Tokenizer as JaxTokenizer

    arrays = {k: jnp.asarray(v) for k, v in to_jax({k: v.numpy() for k, v in weights.items()}).items()}
    in_jax = JaxTokenizer(config, arrays)
    return lambda: np.asarray(in_jax.encode(images))


def serve(name: str, model: str, count: int, side: int) -> None:
    """Encode once per line of standard input; print what it took."""
    run = contender(name, model, count, side)
    ids = run()
    print(json.dumps({"ids": ids.reshape(-1).tolist()}), flush=True)
    for _ in sys.stdin:
        before, begun = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        run()
        seconds, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF)
        used = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        print(
            json.dumps(
                {"wall": seconds, "cpu": used, "faults": after.ru_minflt - before.ru_minflt, "peak": after.ru_maxrss}
            ),
            flush=True,
        )


def measure(model: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the table for one model."""
    words = [sys.executable, __file__, "--images", str(options.images), "--side", str(options.side)]
    started = {
        name: subprocess.Popen(
            [*words, "--serve", name, "--models", model], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in options.contenders
    }
    ids = {name: answer(process)["ids"] for name, process in started.items()}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in started}
    for _ in range(options.rounds):
        for name, process in started.items():
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
            found[name].append(answer(process))
    for process in started.values():
        process.communicate()
    first = next(iter(started))
    rows = []
    for name, times in found.items():
        row: dict[str, Any] = {"model": model, "contender": name}
        row |= {key: statistics.median(value[key] for value in times) for key in ("wall", "cpu", "faults")}
        row |= {"peak_mib": max(value["peak"] for value in times) / 1024}
        row |= {"other_ids": sum(a != b for a, b in zip(ids[name], ids[first], strict=True)), "ids": len(ids[first])}
        rows.append(row)
    for row in rows:
        row |= {f"{key}_ratio": row[key] / rows[0][key] for key in ("wall", "cpu")}
    return rows


def answer(process: subprocess.Popen[str]) -> Any:
    """One line of a contender."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"a contender ended with {process.wait()}")
    return json.loads(line)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=list(MODELS))
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        serve(options.serve, options.models[0], options.images, options.side)
        return 0
    rows = [row for model in options.models for row in measure(model, options)]
    print(
        f"{options.images} photographs of {options.side} x {options.side}, float32, median of {options.rounds}; "
        "ratios to plain modules"
    )
    print(f"{'model':22} {'contender':14} {'wall s':>8} ratio {'cpu s':>8} ratio {'faults':>8} {'MiB':>6} ids")
    for row in rows:
        print(
            f"{row['model']:22} {row['contender']:14} {row['wall']:8.2f} {row['wall_ratio']:5.2f} {row['cpu']:8.2f} "
            f"{row['cpu_ratio']:5.2f} {row['faults']:8.0f} {row['peak_mib']:6.0f} "
            f"{row['other_ids']} of {row['ids']} differ"
        )
    print(json.dumps(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
