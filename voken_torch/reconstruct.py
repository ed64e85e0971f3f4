"""Reconstruct images: `python -m voken_torch.reconstruct --checkpoint DIR --input FILE_OR_DIR --output DIR`.

Writes every reconstruction as PNG, a side-by-side picture, the ids as `ids.npz`, and PSNR per image and on average as
`psnr.json`. Images may have any size; they are padded to whole tokens and cropped back.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from voken_common.commands import reconstruct as reconstruction
from voken_torch.device import runtime as device
from voken_torch.tokenizer.api import Tokenizer


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, or 2 for input that cannot be used."""
    parser = reconstruction.build_parser("voken_torch.reconstruct", __doc__)
    parser.add_argument("--device", choices=device.NAMES, default="auto", help="auto: an NPU, else CUDA, else the CPU")
    options = parser.parse_args(arguments)
    root = Path(options.input)
    try:
        paths = reconstruction.find_images(root)
        step, runtime = reconstruction.step_of(options.step), device.start(options.device)
        found = Tokenizer.load(
            options.checkpoint, step=step, weights=options.weights, runtime=runtime, verify=options.checksums
        )
        values = reconstruction.reconstruct(_Arrays(found), paths, root, Path(options.output))
    except (ValueError, OSError, device.DeviceError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    reconstruction.print_result(values, options.output)
    return 0


class _Arrays:
    """A tokenizer that takes and gives NumPy arrays, images channels last."""

    def __init__(self, tokenizer: Tokenizer):
        self.downsampling = tokenizer.downsampling
        self.encode = lambda images: tokenizer.encode(torch.from_numpy(images).movedim(-1, 1)).cpu().numpy()
        self.decode = lambda ids: tokenizer.decode(torch.from_numpy(ids)).movedim(1, -1).cpu().numpy()


if __name__ == "__main__":
    sys.exit(main())
