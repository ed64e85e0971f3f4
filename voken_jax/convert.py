"""Convert checkpoints: `python -m voken_jax.convert SRC DST`, or `voken-convert SRC DST`.

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
import logging
import sys
from pathlib import Path

from voken_common.checkpoints.conversion.contents import FORMATS
from voken_common.commands.options import add_no_verify

DIFFERS = 4


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="voken-convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("src", metavar="SRC", type=Path)
    parser.add_argument("dst", metavar="DST", type=Path)
    parser.add_argument("--to", choices=tuple(FORMATS), help="what DST becomes; default: from its suffix")
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
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Exit status: see the top."""
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("absl").setLevel(logging.ERROR)
    import jax

    from voken_jax.conversion.run import convert

    # Accelerators would be of no use, and comparing needs full float32 products.
    jax.config.update("jax_platforms", "cpu")
    try:
        return 0 if convert(options) else DIFFERS
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
