"""The public Tokenizer: load a checkpoint, turn images or clips into ids and back.

Shape legend: B batch, H/W pixels, h/w tokens (H / downsampling, W / downsampling), T frames, t latent frames
((T - 1) / time_downsampling + 1), D code dimension; S and s the axes of pixels and of tokens, H W or T H W.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from numpy.typing import ArrayLike

from voken_common.api.inputs import (
    check_floating,
    check_range,
    check_shape,
    check_sides,
    middle,
    to_ids,
    to_images,
)
from voken_common.api.sharing import Known, Shareable, example_images
from voken_common.api.summary import Machinery, summarize_tokenizer
from voken_common.checkpoints.hub.sharing import Shared
from voken_common.checkpoints.steps import Step, Weights
from voken_common.checkpoints.weight_names import require_same_shapes, to_torch
from voken_common.config.inference import Precision
from voken_common.config.schema.tokenizer import Config
from voken_common.config.schema.video import latent_frames
from voken_common.data.tokens.format import fingerprint
from voken_common.pixels import pad_to_multiple, to_uint8
from voken_common.visual.grids import side_by_side
from voken_jax.checkpoints import load as loading
from voken_jax.quantizers.configured import code_indices, encode_indices, lookup
from voken_jax.tokenizer.images import Images
from voken_jax.tokenizer.state import build_autoencoder


class Tokenizer(Shareable):
    """A trained tokenizer of images or of clips. Programs are compiled once per size.

    `encode` takes paths, PIL images, bytes (uint8), floats in [-1, 1], one image or a batch, of NumPy, JAX or PyTorch;
    see `voken_common.api.inputs`. One image gives one grid of ids, and one grid of ids one image. A video
    tokenizer takes arrays of clips (T, H, W, 3) or (B, T, H, W, 3), T a multiple of `time_downsampling`, and one more.

    Args:
        config: the run it comes from; its `model`, `quantizer` and `precision` are used.
        weights: the generator's weights by dotted name.
        source: the checkpoint, for `print`.

    Raises:
        NameMismatch: the weights are not those of the network.
    """

    def __init__(self, config: Config, weights: dict[str, Array], source: str | Path = ""):
        self.config, self.source = config, str(source)
        self._network = build_autoencoder(config)
        require_same_shapes(weights, self._network.parameters, f"weights of {config.name}")
        self._weights = weights
        self._encode = jax.jit(self._encode_program)
        self._decode = jax.jit(self._decode_program)

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        precision: Precision = "float32",
        weights: Weights | None = None,
        step: Step = "latest",
        config: str | Path | None = None,
        verify: bool = True,
    ) -> Tokenizer:
        """Read a checkpoint; what has to be downloaded or converted is, once.

        Args:
            source: a published model or a repository of the hub (`OWNER/NAME[@REVISION][:FILE]`), a Lightning .ckpt,
                a .pt or .safetensors file, a work directory, or a step in one.
            precision: to compute in, whatever the model was trained in: float32, bfloat16 (weights stay in float32),
                or float64 (where JAX has it enabled).
            weights: `ema` (averages, for evaluation) or `raw`; None: averages if there are any, and what a
                .safetensors file holds.
            step: which step of a work directory: `latest`, `best` or a number.
            config: a YAML file or a published model, where a foreign file does not say what it is.
            verify: whether to verify the checksums of what is read.

        Raises:
            CheckpointError: there is no such checkpoint, it is damaged, or it cannot be read.
            NameMismatch: the weights are not those of the network.
        """
        found = loading.load(
            source,
            lambda meta: build_autoencoder(meta.tokenizer),
            step=step,
            weights=weights,
            config=config,
            verify=verify,
            precision=precision,
        )
        tokenizer = cls(found.meta.tokenizer, found.weights, found.source)
        tokenizer.known = Known(found.kind, found.meta.metrics, found.resolved.model)
        return tokenizer

    from_pretrained = load

    @property
    def weights(self) -> dict[str, Array]:
        """The weights by dotted name."""
        return self._weights

    @property
    def downsampling(self) -> int:
        """Pixels per token along one side."""
        return self.config.model.downsampling

    @property
    def time_downsampling(self) -> int:
        """Frames per latent frame after the first; 1 for images."""
        return self.config.model.time_downsampling

    @property
    def _axes(self) -> int:
        return 3 if self.config.model.is_video else 2

    @property
    def codebook_size(self) -> int:
        """Ids are in [0, codebook_size)."""
        return self.config.quantizer.codebook_size

    def _to_share(self, picture: bool) -> tuple[Shared, None]:
        arrays = to_torch({name: np.asarray(leaf) for name, leaf in self._weights.items()})
        shown = None
        if picture and not self.config.model.is_video:
            originals = example_images(self.config.data.image_size)
            found = np.asarray(self.reconstruct(originals / np.float32(127.5) - 1))
            shown = side_by_side(list(originals), list(to_uint8(found)))
        known = self.known
        return Shared(self.config, arrays, known.weights, known.metrics, known.model, shown), None

    def fingerprint(self) -> str:
        """A hash of network and weights, the same in both frameworks; tokens carry it."""
        return fingerprint(self.config, to_torch({name: np.asarray(leaf) for name, leaf in self._weights.items()}))

    @property
    def device(self) -> str:
        """The devices that hold the weights."""
        return ", ".join(sorted(map(str, next(iter(self._weights.values())).devices())))

    def __repr__(self) -> str:
        precision, weights = self.config.precision, self._weights.values()
        how = Machinery(
            sum(weight.size for weight in weights),
            str(next(iter(weights)).dtype),
            precision.compute_dtype,
            f"{self.device} (JAX)",
            self.source,
        )
        return summarize_tokenizer(self.config, how)

    def encode(self, images: Any, *, crop: bool = False) -> Int[Array, "*Bs"]:
        """Ids (int32) of images (H, W, 3) or (B, H, W, 3), paths, PIL images, or a list of single ones; of clips
        (T, H, W, 3) or (B, T, H, W, 3).

        Args:
            images: bytes (uint8), or floats in [-1, 1].
            crop: cut the middle whose sides are multiples of `downsampling`; otherwise other sides are refused.

        Raises:
            UserError: another shape or type, values outside [-1, 1], sides or frames that are not whole tokens.
        """
        batch, single = self._batch(images)
        if crop:
            kept = middle(batch.shape[-3], batch.shape[-2], self.downsampling)
            batch = batch[..., kept.top : kept.bottom, kept.left : kept.right, :]
        height, width = batch.shape[-3:-1]
        check_sides(height, width, self.downsampling)
        frames = (latent_frames(batch.shape[1], self.time_downsampling),) if self._axes == 3 else ()
        if not len(batch):
            return jnp.zeros((0, *frames, height // self.downsampling, width // self.downsampling), jnp.int32)
        ids = self._encode(self._weights, batch)
        return ids[0] if single else ids

    def codes(self, ids: ArrayLike) -> Float[Array, "*Bs D"]:
        """Return the decoder's input for these ids; `ids_of` inverts it exactly."""
        given = to_ids(ids, self.codebook_size, self._axes)
        codes = lookup(self.config.quantizer, jnp.asarray(given.array, jnp.int32), self._codebook())
        return codes[0] if given.single else codes

    def ids_of(self, codes: ArrayLike) -> Int[Array, "B *s"]:
        """Ids of codes (B, h, w, D) as `codes` gives them: the code at distance 0."""
        return code_indices(self.config.quantizer, jnp.asarray(codes), self._codebook())

    def decode(self, ids: ArrayLike) -> Any:
        """Images in [-1, 1] of ids (B, h, w), or the image of ids (h, w); any grid size and integer type.

        Of a video tokenizer clips of ids (B, t, h, w), or the clip of ids (t, h, w).

        Returns:
            an array (B, H, W, 3) or (H, W, 3) with `.to_pil()` and `.save(path)`; clips are plain arrays.

        Raises:
            UserError: another shape or type, or an id outside the codebook.
        """
        given = to_ids(ids, self.codebook_size, self._axes)
        images = self._decoded(given.array)
        result = images[0] if given.single else images
        return result if self._axes == 3 else Images(result)

    def reconstruct(self, images: Any) -> Any:
        """Encode and decode images of any size, padded with grey to multiples of `downsampling` and cropped back."""
        batch, single = self._batch(images)
        padded, region = pad_to_multiple(np.asarray(batch), self.downsampling)
        result = jnp.asarray(region.crop(np.asarray(self._decoded(self.encode(padded)))))
        result = result[0] if single else result
        return result if self._axes == 3 else Images(result)

    def _decoded(self, ids: ArrayLike) -> Float[Array, "B *S 3"]:
        ids = jnp.asarray(ids, jnp.int32)
        if not len(ids):
            height, width = (side * self.downsampling for side in ids.shape[-2:])
            frames = tuple((count - 1) * self.time_downsampling + 1 for count in ids.shape[1:-2])
            return jnp.zeros((0, *frames, height, width, self.config.model.image_channels), jnp.float32)
        return self._decode(self._weights, ids)

    def _codebook(self) -> Array | None:
        return self._network.bind(self._weights).codebook

    def _encode_program(self, weights: dict[str, Array], images: Array) -> Array:
        model = self._network.bind(weights)
        return encode_indices(self.config.quantizer, model.encode(images), model.codebook)

    def _decode_program(self, weights: dict[str, Array], ids: Array) -> Array:
        model = self._network.bind(weights)
        return jnp.clip(model.decode(lookup(self.config.quantizer, ids, model.codebook)), -1.0, 1.0)

    def _batch(self, images: Any) -> tuple[Array, bool]:
        """Images as a batch of floats, and whether it was one; arrays of JAX stay on their devices."""
        if isinstance(images, Images):
            images = images.array
        channels = self.config.model.image_channels
        if not isinstance(images, Array) or images.dtype == jnp.uint8:
            given = to_images(images, channels, self._axes)
            return jnp.asarray(given.array), given.single
        single = images.ndim == self._axes + 1
        batch = images[None] if single else images
        check_shape(batch.shape, channels, given=images.shape, axes=self._axes)
        check_floating(images.dtype, jnp.issubdtype(images.dtype, jnp.floating))
        if images.size and not isinstance(images, jax.core.Tracer):
            on_cpu = all(device.platform == "cpu" for device in images.devices())
            values: Any = np.asarray(images) if on_cpu else images
            check_range(float(values.min()), float(values.max()))
        return batch, single
