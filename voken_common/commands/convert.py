"""Convert a checkpoint: voken convert SRC DST.

SRC is a published checkpoint (PyTorch Lightning), a checkpoint of voken from JAX (Orbax) or PyTorch (.pt), or a
.safetensors file; which one it is shows its content. DST ends in .pt, .safetensors or .ckpt (Lightning), or is a
directory (Orbax; with --to torch a work directory for PyTorch). Everything that the target can hold is kept: both sets
of weights, and between JAX and PyTorch the whole training state, so that training continues there.

The tokenizer of a generator lies inside a Lightning file; elsewhere it is a checkpoint of its own beside the
generator's: DST_tokenizer is written with DST, in the same format.

Exit status: 0 done, 2 input that cannot be used, 4 the result does not compute the same (--verify).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from voken_common.commands.frameworks import module_of
from voken_common.commands.options import add_no_verify

FORMATS = ("torch", "orbax", "safetensors", "lightning")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A source, a target, and what becomes of the former in the latter."""
    parser.add_argument("src", metavar="SRC", type=Path)
    parser.add_argument("dst", metavar="DST", type=Path)
    parser.add_argument("--to", choices=FORMATS, help="format of DST; default: from its suffix")
    parser.add_argument("--weights", choices=("ema", "raw"), help="only this set, as a checkpoint for inference")
    parser.add_argument("--step", default="latest", help="of a work directory: latest, best or a number")
    parser.add_argument(
        "--config", metavar="FILE", help="configuration, or name of a published model, where SRC does not carry one"
    )
    parser.add_argument(
        "--tokenizer", metavar="CHECKPOINT", type=Path, help="of a generator: instead of the one it names or holds"
    )
    parser.add_argument(
        "--tokenizer-config", metavar="FILE", help="configuration, or name of a published model, of that tokenizer"
    )
    add_no_verify(parser)
    parser.add_argument("--verify", action="store_true", help="compute with both, in JAX and in PyTorch, and compare")
    parser.add_argument("--overwrite", action="store_true", help="replace DST")
    parser.add_argument("--allow-nonfinite", action="store_true", help="convert weights that are NaN or infinite")
    risk = parser.add_mutually_exclusive_group()
    risk.add_argument(
        "--skip-objects",
        action="store_true",
        help="read the tensors of a pickle that holds other objects too, and skip those; nothing in it runs",
    )
    risk.add_argument(
        "--allow-pickle",
        action="store_true",
        help="load such a pickle with torch, which RUNS whatever code is in it: only for files you trust",
    )


def run(options: argparse.Namespace) -> int:
    """Convert in the framework of `options`."""
    status: int = module_of(options, "convert").run(options)
    return status
