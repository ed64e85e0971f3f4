"""torch.export programs and ONNX files of a tokenizer's encoder and decoder, checked against the tokenizer."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch.export import Dim

from voken_common.atomic_write import replacing
from voken_common.errors import UnavailableError
from voken_torch.export.modules import Decoder, Encoder
from voken_torch.tokenizer.api import Tokenizer

Part = Literal["encoder", "decoder"]
GRID = (3, 2)
"""Rows and columns of tokens of the example that is traced; none of the exported sizes depends on it."""


class Exported:
    """One exported file: runs it on NumPy arrays, images channels first.

    Attributes:
        path: of the file.
        dynamic: a sentence on the sizes that it accepts.
    """

    def __init__(self, path: Path, part: Part, dynamic: str):
        self.path, self.part, self.dynamic = path, part, dynamic
        self._session: Any = None

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """Run the file, and nothing of voken."""
        if self.path.suffix == ".pt2":
            if self._session is None:
                self._session = torch.export.load(str(self.path)).module()
            with torch.no_grad():
                result: np.ndarray = self._session(torch.from_numpy(array)).numpy()
            return result
        if self._session is None:
            import onnxruntime

            self._session = onnxruntime.InferenceSession(str(self.path), providers=["CPUExecutionProvider"])
        name = self._session.get_inputs()[0].name
        output: np.ndarray = self._session.run(None, {name: array})[0]
        return output


def export(tokenizer: Tokenizer, part: Part, target: Path, kind: Literal["torch-export", "onnx"]) -> Exported:
    """Write one part of a tokenizer as a program with open batch size and image size.

    Args:
        tokenizer: on the CPU, in float32.
        part: encoder (images to ids, quantizer included) or decoder (ids to images).
        target: the file to write; it appears complete or not at all.
        kind: torch-export, which `torch.export.load` reads, or onnx.

    Raises:
        UnavailableError: a package that the format needs is not installed.
    """
    factor = tokenizer.downsampling
    rows, columns, batch = Dim("rows", min=1, max=4096), Dim("columns", min=1, max=4096), Dim("batch", min=1, max=4096)
    if part == "encoder":
        module: torch.nn.Module = Encoder(tokenizer)
        channels = tokenizer.config.model.image_channels
        example = torch.zeros(2, channels, GRID[0] * factor, GRID[1] * factor)
        shapes = {"images": {0: batch, 2: factor * rows, 3: factor * columns}}
        sizes = f"images (B, {channels}, H, W), B any, H and W multiples of {factor}"
    else:
        module = Decoder(tokenizer)
        example = torch.zeros(2, *GRID, dtype=torch.int64)
        shapes = {"ids": {0: batch, 1: rows, 2: columns}}
        sizes = "ids (B, h, w) int64, all sizes open"
    module.eval()
    with _quiet(), torch.no_grad():
        program = torch.export.export(module, (example,), dynamic_shapes=shapes)
        content = _onnx(program, part) if kind == "onnx" else _program(program)
    with replacing(target) as file:
        file.write(content)
    return Exported(target, part, sizes)


def reference(
    tokenizer: Tokenizer, images: Float[np.ndarray, "B 3 H W"]
) -> tuple[Int[np.ndarray, "B h w"], Float[np.ndarray, "B 3 H W"]]:
    """Compute ids and reconstructions of the tokenizer itself."""
    ids = tokenizer.encode(torch.from_numpy(images))
    return ids.cpu().numpy().astype(np.int64), np.asarray(tokenizer.decode(ids).cpu())


def _program(program: torch.export.ExportedProgram) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def _onnx(program: torch.export.ExportedProgram, part: Part) -> bytes:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UnavailableError("ONNX needs the packages onnx and onnxscript: pip install 'voken[export]'") from error
    names = ("images", "ids") if part == "encoder" else ("ids", "images")
    converted = torch.onnx.export(program, input_names=[names[0]], output_names=[names[1]], dynamo=True, verbose=False)
    assert converted is not None
    content: bytes = converted.model_proto.SerializeToString()
    return content


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' progress and deprecations of their own off the terminal; their errors are exceptions."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
