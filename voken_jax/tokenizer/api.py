"""The public Tokenizer: load a checkpoint, turn images into ids and ids into images.

Shape legend: B batch, H/W pixels, h/w tokens (H / downsampling, W / downsampling), D code dimension.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from numpy.typing import ArrayLike

from voken_common.checkpoints.steps import Step, Weights
from voken_common.checkpoints.weight_names import require_same_shapes, to_torch
from voken_common.config.tokenizer import Config
from voken_common.data.tokens.format import fingerprint
from voken_common.pixels import pad_to_multiple
from voken_jax.checkpoints import load as loading
from voken_jax.quantizers.configured import code_indices, encode_indices, lookup
from voken_jax.tokenizer.state import build_autoencoder


class Tokenizer:
    """A trained image tokenizer. Programs are compiled once per image size.

    Args:
        config: the run it comes from; its `model`, `quantizer` and `precision` are used.
        weights: the generator's weights by dotted name.

    Raises:
        NameMismatch: the weights are not those of the network.
    """

    def __init__(self, config: Config, weights: dict[str, Array]):
        self.config = config
        self._network = build_autoencoder(config)
        require_same_shapes(weights, self._network.parameters, f"weights of {config.name}")
        self._weights = weights
        self._encode = jax.jit(self._encode_program)
        self._decode = jax.jit(self._decode_program)

    @classmethod
    def load(
        cls,
        checkpoint: str | Path,
        *,
        step: Step = "latest",
        weights: Weights | None = None,
        verify: bool = True,
    ) -> Tokenizer:
        """Read a checkpoint; nothing but its place is needed.

        Args:
            checkpoint: a work directory, the folder of one step, or a .safetensors file of voken.
            step: which step of a work directory.
            weights: `ema` (averages, for evaluation) or `raw`; None: averages if there are any, and what a
                .safetensors file holds.
            verify: whether to verify the checksums of what is read.

        Raises:
            CheckpointError: there is no such checkpoint, it is damaged, or it cannot be read. Other files become
                one of these by `voken-convert`.
        """
        found = loading.load(
            checkpoint, lambda meta: build_autoencoder(meta.tokenizer), step=step, weights=weights, verify=verify
        )
        return cls(found.meta.tokenizer, found.weights)

    @property
    def weights(self) -> dict[str, Array]:
        """The weights by dotted name."""
        return self._weights

    @property
    def downsampling(self) -> int:
        """Pixels per token along one side."""
        return self.config.model.downsampling

    @property
    def codebook_size(self) -> int:
        """Ids are in [0, codebook_size)."""
        return self.config.quantizer.codebook_size

    def fingerprint(self) -> str:
        """A hash of network and weights, the same in both frameworks; tokens carry it."""
        return fingerprint(self.config, to_torch({name: np.asarray(leaf) for name, leaf in self._weights.items()}))

    def encode(self, images: ArrayLike) -> Int[Array, "B h w"]:
        """Ids (int32) of images (B, H, W, 3) in [-1, 1].

        Raises:
            ValueError: another shape or type, or sides that are not multiples of `downsampling`.
        """
        images = self._checked(images)
        height, width = images.shape[1:3]
        if height % self.downsampling or width % self.downsampling:
            raise ValueError(
                f"images are {height} x {width}: both sides must be multiples of {self.downsampling}; "
                "`reconstruct` pads and crops, `voken_common.pixels.pad_to_multiple` pads"
            )
        return self._encode(self._weights, images)

    def codes(self, ids: ArrayLike) -> Float[Array, "B h w D"]:
        """What the decoder sees for these ids; `ids_of` inverts it exactly."""
        return lookup(self.config.quantizer, self._checked_ids(ids), self._codebook())

    def ids_of(self, codes: ArrayLike) -> Int[Array, "B h w"]:
        """Ids of codes (B, h, w, D) as `codes` gives them: the code at distance 0."""
        return code_indices(self.config.quantizer, jnp.asarray(codes), self._codebook())

    def decode(self, ids: ArrayLike) -> Float[Array, "B H W 3"]:
        """Images in [-1, 1] of ids (B, h, w), any grid size.

        Raises:
            ValueError: not a (B, h, w) array of integers, or an id outside the codebook.
        """
        return self._decode(self._weights, self._checked_ids(ids))

    def reconstruct(self, images: ArrayLike) -> Float[Array, "B H W 3"]:
        """Encode and decode images of any size, padded with grey to multiples of `downsampling` and cropped back."""
        padded, region = pad_to_multiple(np.asarray(self._checked(images)), self.downsampling)
        return jnp.asarray(region.crop(np.asarray(self.decode(self.encode(padded)))))

    def _codebook(self) -> Array | None:
        return self._network.bind(self._weights).codebook

    def _encode_program(self, weights: dict[str, Array], images: Array) -> Array:
        model = self._network.bind(weights)
        return encode_indices(self.config.quantizer, model.encode(images), model.codebook)

    def _decode_program(self, weights: dict[str, Array], ids: Array) -> Array:
        model = self._network.bind(weights)
        return jnp.clip(model.decode(lookup(self.config.quantizer, ids, model.codebook)), -1.0, 1.0)

    def _checked(self, images: ArrayLike) -> Array:
        images = jnp.asarray(images)
        channels = self.config.model.image_channels
        if images.ndim != 4 or images.shape[-1] != channels or 0 in images.shape:
            raise ValueError(f"images have shape {images.shape}, expected (B, H, W, {channels}), channels last")
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(
                f"images are {images.dtype}, expected floats in [-1, 1]: uint8 pixels become them by x / 127.5 - 1"
            )
        return images

    def _checked_ids(self, ids: ArrayLike) -> Array:
        array = np.asarray(ids)
        if array.ndim != 3 or array.dtype.kind not in "iu":
            raise ValueError(f"ids are {array.dtype} of shape {array.shape}, expected integers (B, h, w)")
        if array.size and not 0 <= array.min() <= array.max() < self.codebook_size:
            raise ValueError(
                f"ids run from {array.min()} to {array.max()}, expected 0 to {self.codebook_size - 1}: "
                "they belong to another tokenizer"
            )
        return jnp.asarray(array, jnp.int32)
