"""Reconstruct images: `python -m voken_jax.reconstruct --checkpoint DIR --input FILE_OR_DIR --output DIR`.

Writes every reconstruction as PNG, a side-by-side picture, the ids as `ids.npz`, and PSNR per image and on average as
`psnr.json`. Images may have any size; they are padded to whole tokens and cropped back.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from voken_common.commands import reconstruct as reconstruction
from voken_jax.tokenizer.api import Tokenizer


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, or 2 for input that cannot be used."""
    options = reconstruction.build_parser("voken_jax.reconstruct", __doc__).parse_args(arguments)
    root = Path(options.input)
    try:
        paths = reconstruction.find_images(root)
        step = reconstruction.step_of(options.step)
        tokenizer = _Arrays(
            Tokenizer.load(options.checkpoint, step=step, weights=options.weights, verify=options.checksums)
        )
        values = reconstruction.reconstruct(tokenizer, paths, root, Path(options.output))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    reconstruction.print_result(values, options.output)
    return 0


class _Arrays:
    """A tokenizer that takes and gives NumPy arrays."""

    def __init__(self, tokenizer: Tokenizer):
        self.downsampling = tokenizer.downsampling
        self.encode = lambda images: np.asarray(tokenizer.encode(images))
        self.decode = lambda ids: np.asarray(tokenizer.decode(ids))


if __name__ == "__main__":
    sys.exit(main())
