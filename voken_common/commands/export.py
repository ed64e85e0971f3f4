"""Export a tokenizer as a program that runs without voken.

--format stablehlo (JAX) writes artefacts for `jax.export.deserialize`, torch-export programs for `torch.export.load`,
onnx files for onnxruntime and others, safetensors the weights alone with their configuration. The encoder includes the
quantizer: it takes images in [-1, 1] and returns ids. Batch and image size stay open. Every file is then run on
photographs beside the tokenizer itself; ids must be equal.
"""

from __future__ import annotations

import argparse
from pathlib import Path

FORMATS = {"stablehlo": ".stablehlo", "torch-export": ".pt2", "onnx": ".onnx", "safetensors": ".safetensors"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A model, a format, and a folder."""
    parser.add_argument("model", metavar="MODEL", help="a published model, a file or a work directory")
    parser.add_argument("--format", choices=tuple(FORMATS), required=True, help="of the files")
    parser.add_argument("--part", choices=("encoder", "decoder", "both"), default="both", help="of the model")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to write the files to")
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="FILE",
        help="photograph to compare on; default: those that scikit-image ships",
    )


def run(options: argparse.Namespace) -> int:
    """Write the files, compare them with the tokenizer, and print a table."""
    from voken_common.commands.frameworks import choose

    if options.format == "safetensors":
        return _weights(options)
    framework = choose("jax" if options.format == "stablehlo" else "torch")
    from importlib import import_module

    from voken_common.evaluation.exports import compare, table

    program = import_module(f"voken_{framework}.export.job").open_job(options.model, options.format)
    parts = ("encoder", "decoder") if options.part == "both" else (options.part,)
    rows = compare(program, parts, Path(options.output), FORMATS[options.format], options.image)
    for line in table(rows):
        print(line)
    wrong = [row.name for row in rows if not row.agrees]
    if wrong:
        raise ValueError(f"{', '.join(wrong)}: the exported program does not agree with the tokenizer; see the table")
    return 0


def _weights(options: argparse.Namespace) -> int:
    from importlib import import_module

    from voken_common.atomic_write import replacing
    from voken_common.checkpoints.conversion.safetensors_file import write_safetensors
    from voken_common.checkpoints.steps import Weights
    from voken_common.commands.frameworks import choose
    from voken_common.errors import CheckpointError

    if options.part != "both":
        raise ValueError(f"--part {options.part}: a .safetensors file holds both parts; leave --part out")
    read_weights = import_module(f"voken_{choose(None)}.export.job").read_weights
    kind: Weights = "ema"
    try:
        meta, weights = read_weights(options.model, kind)
    except CheckpointError:
        # A checkpoint without averages; any other fault is met again.
        kind = "raw"
        meta, weights = read_weights(options.model, kind)
    target = Path(options.output) / "model.safetensors"
    with replacing(target) as file:
        write_safetensors(file, weights, meta, kind)
    size = target.stat().st_size / 2**20
    print(f"{target}: {len(weights)} arrays of {meta.config.name} ({kind} weights), {size:.1f} MiB")
    return 0
