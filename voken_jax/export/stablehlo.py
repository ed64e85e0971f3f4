"""StableHLO artefacts of a tokenizer's encoder and decoder, which `jax.export.deserialize` runs without voken.

Weights are part of the artefact. Shape legend: B batch, H/W pixels, h/w tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jaxtyping import Array, Float, Int

from voken_common.atomic_write import replacing
from voken_common.config.schema.quantizer import LFQConfig, VQConfig
from voken_jax.tokenizer.api import Tokenizer
from voken_jax.tokenizer.state import build_autoencoder

Part = Literal["encoder", "decoder"]
PLATFORMS = ("cpu", "cuda", "tpu")
"""Platforms that an artefact runs on."""
CODES = 16384
"""Codes that are compared with all tokens at once."""


class Exported:
    """One exported file: runs it on NumPy arrays, images channels last.

    Attributes:
        path: of the file.
        dynamic: a sentence on the sizes that it accepts.
    """

    def __init__(self, path: Path, dynamic: str):
        self.path, self.dynamic = path, dynamic
        self._program = jax_export.deserialize(bytearray(path.read_bytes()))

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """Run the file, and nothing of voken."""
        return np.asarray(self._program.call(array))


def export(tokenizer: Tokenizer, part: Part, target: Path) -> Exported:
    """Write one part of a tokenizer as a serialized StableHLO program with open batch size and image size.

    Args:
        tokenizer: in float32.
        part: encoder (images to ids, quantizer included) or decoder (ids to images).
        target: the file to write; it appears complete or not at all.
    """
    factor, channels = tokenizer.downsampling, tokenizer.config.model.image_channels
    if part == "encoder":
        batch, rows, columns = _grid()
        shape: Any = (batch, factor * rows, factor * columns, channels)
        given = jax.ShapeDtypeStruct(shape, jnp.float32)
        function, sizes = (
            _encoder(tokenizer),
            f"images (B, H, W, {channels}), B any, H and W multiples of {factor}, at least two tokens",
        )
    else:
        given = jax.ShapeDtypeStruct(_grid(), jnp.int32)
        function, sizes = _decoder(tokenizer), "ids (B, h, w) int32, at least two tokens an image"
    program = jax_export.export(jax.jit(function), platforms=PLATFORMS)(given)
    with replacing(target) as file:
        file.write(program.serialize())
    return Exported(target, sizes)


def reference(
    tokenizer: Tokenizer, images: Float[np.ndarray, "B H W 3"]
) -> tuple[Int[np.ndarray, "B h w"], Float[np.ndarray, "B H W 3"]]:
    """Compute ids and reconstructions of the tokenizer itself."""
    ids = np.asarray(tokenizer.encode(images))
    return ids, np.asarray(tokenizer.decode(ids))


def _grid() -> tuple[Any, ...]:
    """Symbolic batch, rows and columns; statistics over a single token would have no variance."""
    return tuple(jax_export.symbolic_shape("b, r, c", constraints=["r * c >= 2"]))


def _encoder(tokenizer: Tokenizer) -> Callable[[Array], Array]:
    network, weights = build_autoencoder(tokenizer.config), tokenizer.weights
    config = tokenizer.config.quantizer

    def encode(images: Float[Array, "B H W 3"]) -> Int[Array, "B h w"]:
        model = network.bind(weights)
        latents = model.encode(images)
        latents = latents.astype(jnp.promote_types(latents.dtype, jnp.float32))
        if isinstance(config, LFQConfig):
            return ((latents > 0) * 2 ** jnp.arange(config.code_dim, dtype=jnp.int32)).sum(-1, dtype=jnp.int32)
        return _nearest(config, latents, model.codebook)

    return encode


def _nearest(config: object, latents: Float[Array, "B h w D"], codebook: Float[Array, "K D"]) -> Int[Array, "B h w"]:
    """Find the code of each token; the codebook is cut into blocks, the first of equal codes wins."""
    distance = isinstance(config, VQConfig)
    if isinstance(config, VQConfig) and config.l2_normalize:
        latents, codebook = (x / jnp.linalg.norm(x, axis=-1, keepdims=True).clip(1e-12) for x in (latents, codebook))
    best = ids = None
    for start in range(0, codebook.shape[0], CODES):
        codes = codebook[start : start + CODES]
        scores = jnp.einsum("...d,kd->...k", latents, codes, precision="highest")
        if distance:
            scores = 2 * scores - (codes * codes).sum(-1)
        highest, found = scores.max(-1), scores.argmax(-1).astype(jnp.int32)
        if best is None or ids is None:
            best, ids = highest, found
        else:
            better = highest > best
            best, ids = jnp.where(better, highest, best), jnp.where(better, found + start, ids)
    assert ids is not None
    return ids


def _decoder(tokenizer: Tokenizer) -> Callable[[Array], Array]:
    network, weights = build_autoencoder(tokenizer.config), tokenizer.weights
    config = tokenizer.config.quantizer

    def decode(ids: Int[Array, "B h w"]) -> Float[Array, "B H W 3"]:
        model = network.bind(weights)
        if isinstance(config, LFQConfig):
            bits = (ids[..., None] >> jnp.arange(config.code_dim, dtype=jnp.int32)) & 1
            codes = (2 * bits - 1).astype(jnp.float32)
        else:
            codes = model.codebook[ids]
        return jnp.clip(model.decode(codes), -1, 1)

    return decode
