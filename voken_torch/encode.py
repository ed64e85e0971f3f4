"""Turn images into tokens: `python -m voken_torch.encode --checkpoint TOKENIZER --data FOLDER --output DIR`.

Writes token shards, which generators are trained on. The command may be killed at any time; the same command goes on,
and the shards are those of an undisturbed run. Several devices share the work by `torchrun --nproc-per-node N -m
voken_torch.encode ...`. `--decode DIR` turns shards back into images. docs/tokens.md says more.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from voken_common.commands import encode as tokens_command
from voken_common.config.data import DataConfig
from voken_common.data.tokens import encode as tokens_encoding
from voken_common.data.tokens.encode import Encoding
from voken_common.data.tokens.format import TokenInfo
from voken_torch.device import runtime as device
from voken_torch.tokenizer.api import Tokenizer


def encode_dataset(
    tokenizer: Tokenizer, data: DataConfig, output: str | Path, encoding: Encoding | None = None
) -> TokenInfo | None:
    """`voken_common.data.tokens.encode.encode_dataset` for a PyTorch tokenizer."""
    return tokens_encoding.encode_dataset(Arrays(tokenizer), data, output, encoding)


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done, 2 input that cannot be used, 130 interrupted."""
    rank, count, local = device.launched()
    parser = tokens_command.build_parser("voken_torch.encode", __doc__, (rank, count))
    parser.add_argument("--device", choices=device.NAMES, default="auto", help="auto: an NPU, else CUDA, else the CPU")
    options = parser.parse_args(arguments)

    def load(checkpoint: str, step: Any, weights: Any, verify: bool) -> Arrays:
        runtime = device.Runtime(device.resolve(options.device, local))
        return Arrays(Tokenizer.load(checkpoint, step=step, weights=weights, runtime=runtime, verify=verify))

    try:
        return tokens_command.run(options, load)
    except device.DeviceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


class Arrays:
    """A tokenizer that takes and gives NumPy arrays, images channels last."""

    def __init__(self, tokenizer: Tokenizer):
        self.config, self.downsampling = tokenizer.config, tokenizer.downsampling
        self.fingerprint = tokenizer.fingerprint
        self.encode = lambda images: tokenizer.encode(torch.from_numpy(images).movedim(-1, 1)).cpu().numpy()
        self.decode = lambda ids: tokenizer.decode(torch.from_numpy(ids)).movedim(1, -1).cpu().numpy()


if __name__ == "__main__":
    sys.exit(main())
