"""The public Tokenizer: load a checkpoint, turn images or clips into ids and back.

Shape legend: B batch, H/W pixels, h/w tokens (H / downsampling, W / downsampling), T frames, t latent frames
((T - 1) / time_downsampling + 1), D code dimension; S and s the axes of pixels and of tokens, H W or T H W.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

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
from voken_common.checkpoints.weight_names import require_same_shapes
from voken_common.config.inference import Precision
from voken_common.config.schema.tokenizer import Config
from voken_common.config.schema.video import latent_frames
from voken_common.data.tokens.format import fingerprint
from voken_common.pixels import pad_to_multiple, to_uint8
from voken_common.visual.grids import side_by_side
from voken_torch.checkpoints import load as loading
from voken_torch.device.runtime import Runtime
from voken_torch.models.autoencoder import Autoencoder
from voken_torch.models.layers import Policy, plain_attention
from voken_torch.quantizers.configured import code_indices, encode_indices, lookup
from voken_torch.tokenizer.images import Images


class Tokenizer(Shareable, nn.Module):
    """A trained tokenizer of images or of clips, frozen, in evaluation mode; `.to(device)` moves it.

    `encode` takes paths, PIL images, bytes (uint8), floats in [-1, 1], one image or a batch, of NumPy (channels last),
    PyTorch (channels first) or JAX; see `voken_common.api.inputs`. One image gives one grid of ids, and one grid of ids
    one image. A video tokenizer takes clips (3, T, H, W) or (B, 3, T, H, W), of NumPy (T, H, W, 3) or (B, T, H, W, 3),
    T a multiple of `time_downsampling`, and one more.

    Args:
        config: the run it comes from; its `model`, `quantizer` and `precision` are used.
        weights: the generator's weights by name. They are moved to the device, not copied where they are there.
        runtime: the device to compute on; the CPU by default.
        source: the checkpoint, for `print`.

    Raises:
        NameMismatch: the weights are not those of the network.
        DeviceError: the device cannot compute in the configured precision.
    """

    def __init__(
        self, config: Config, weights: dict[str, Tensor], runtime: Runtime | None = None, source: str | Path = ""
    ):
        super().__init__()
        self.config, self.source = config, str(source)
        self._runtime = runtime or Runtime()
        precision = config.precision
        self._runtime.check_precision(precision.param_dtype, precision.compute_dtype)
        with torch.device("meta"):
            network = Autoencoder(
                config.model, config.quantizer, Policy(attention=self._runtime.attention() or plain_attention)
            )
        require_same_shapes(weights, network.state_dict(), f"weights of {config.name}")
        dtype = getattr(torch, precision.param_dtype)
        moved = {name: weight.to(self._runtime.device, dtype) for name, weight in weights.items()}
        network.load_state_dict(moved, strict=True, assign=True)
        self.network = network.requires_grad_(False).eval()

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        precision: Precision = "float32",
        weights: Weights | None = None,
        step: Step = "latest",
        config: str | Path | None = None,
        runtime: Runtime | None = None,
        verify: bool = True,
    ) -> Tokenizer:
        """Read a checkpoint; what has to be downloaded or converted is, once.

        Args:
            source: a published model or a repository of the hub (`OWNER/NAME[@REVISION][:FILE]`), a Lightning .ckpt,
                a .pt or .safetensors file, a work directory, or a step in one.
            precision: to compute in, whatever the model was trained in: float32, bfloat16 (weights stay in float32),
                or float64.
            weights: `ema` (averages, for evaluation) or `raw`; None: averages if there are any, and what a
                .safetensors file holds.
            step: which step of a work directory: `latest`, `best` or a number.
            config: a YAML file or a published model, where a foreign file does not say what it is.
            runtime: where to compute; the CPU by default.
            verify: whether to verify the checksums of what is read.

        Raises:
            CheckpointError: there is no such checkpoint, it is damaged, or it cannot be read.
            NameMismatch: the weights are not those of the network.
            DeviceError: the device cannot compute in that precision.
        """
        found = loading.load(source, step=step, weights=weights, config=config, verify=verify, precision=precision)
        tokenizer = cls(found.meta.tokenizer, found.weights, runtime, found.source)
        tokenizer.known = Known(found.kind, found.meta.metrics, found.resolved.model)
        return tokenizer

    from_pretrained = load

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights by name."""
        return dict(self.network.state_dict())

    @property
    def device(self) -> torch.device:
        """The device that holds the weights; `.to` changes it."""
        return next(self.network.parameters()).device

    @property
    def runtime(self) -> Runtime:
        """The device and how it computes."""
        return dataclasses.replace(self._runtime, device=self.device)

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
        arrays = {name: weight.cpu().numpy() for name, weight in self.network.state_dict().items()}
        shown = None
        if picture and not self.config.model.is_video:
            originals = example_images(self.config.data.image_size)
            found = (
                self.reconstruct(torch.from_numpy(originals / np.float32(127.5) - 1).movedim(-1, 1))
                .movedim(1, -1)
                .cpu()
                .numpy()
            )
            shown = side_by_side(list(originals), list(to_uint8(found)))
        known = self.known
        return Shared(self.config, arrays, known.weights, known.metrics, known.model, shown), None

    def fingerprint(self) -> str:
        """A hash of network and weights, the same in both frameworks; tokens carry it."""
        return fingerprint(self.config, {k: v.cpu().numpy() for k, v in self.network.state_dict().items()})

    def train(self, mode: bool = True) -> Tokenizer:
        """Stay in evaluation mode, also inside a model that is trained: the tokenizer is frozen."""
        super().train(False)
        return self

    def __repr__(self) -> str:
        precision, weights = self.config.precision, list(self.network.parameters())
        stored, computed = str(weights[0].dtype).removeprefix("torch."), precision.compute_dtype
        # `.half()` and `.to(dtype)` change what is stored; only bfloat16 is computed in something else.
        how = Machinery(
            sum(weight.numel() for weight in weights),
            stored,
            computed if computed == "bfloat16" else stored,
            f"{self.device} (PyTorch)",
            self.source,
        )
        return summarize_tokenizer(self.config, how)

    def forward(self, images: Any) -> Any:
        """Reconstruct; see `reconstruct`."""
        return self.reconstruct(images)

    @torch.no_grad()
    def encode(self, images: Any, *, crop: bool = False) -> Int[Tensor, "*Bs"]:
        """Ids (int32) of images (3, H, W) or (B, 3, H, W), paths, PIL images, or a list of single ones; of
        clips (3, T, H, W) or (B, 3, T, H, W).

        Args:
            images: bytes (uint8), or floats in [-1, 1].
            crop: cut the middle whose sides are multiples of `downsampling`; otherwise other sides are refused.

        Raises:
            UserError: another shape or type, values outside [-1, 1], sides or frames that are not whole tokens.
        """
        batch, single = self._batch(images)
        if crop:
            kept = middle(batch.shape[-2], batch.shape[-1], self.downsampling)
            batch = batch[..., kept.top : kept.bottom, kept.left : kept.right]
        ids = self._ids(batch)
        return ids[0] if single else ids

    def codes(self, ids: Any) -> Float[Tensor, "*Bs D"]:
        """Return the decoder's input for these ids; `ids_of` inverts it exactly."""
        given = to_ids(ids, self.codebook_size, self._axes)
        codes = self._codes(given.array)
        return codes[0] if given.single else codes

    def ids_of(self, codes: Float[Tensor, "B *s D"]) -> Int[Tensor, "B *s"]:
        """Ids of codes as `codes` gives them: the code at distance 0."""
        codes = codes.to(self.device)
        return code_indices(self.config.quantizer, codes, self.network.codebook).to(torch.int32)

    @torch.no_grad()
    def decode(self, ids: Any) -> Any:
        """Images in [-1, 1] of ids (B, h, w), or the image of ids (h, w); any grid size and integer type.

        Of a video tokenizer clips of ids (B, t, h, w), or the clip of ids (t, h, w).

        Returns:
            a tensor (B, 3, H, W) or (3, H, W) with `.to_pil()` and `.save(path)`; clips are plain tensors.

        Raises:
            UserError: another shape or type, or an id outside the codebook.
        """
        given = to_ids(ids, self.codebook_size, self._axes)
        images = self._decoded(given.array)
        result = images[0] if given.single else images
        return result if self._axes == 3 else Images.of(result)

    @torch.no_grad()
    def reconstruct(self, images: Any) -> Any:
        """Encode and decode images of any size, padded with grey to multiples of `downsampling` and cropped back."""
        batch, single = self._batch(images)
        padded, region = pad_to_multiple(batch.movedim(1, -1).cpu().numpy(), self.downsampling)
        result = self._decoded(self._ids(torch.from_numpy(padded).movedim(-1, 1)).cpu().numpy())
        result = result[..., region.top : region.bottom, region.left : region.right]
        result = result[0] if single else result
        return result if self._axes == 3 else Images.of(result)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.network.parameters()).dtype

    def _ids(self, images: Float[Tensor, "B 3 *S"]) -> Int[Tensor, "B *s"]:
        height, width = images.shape[-2:]
        check_sides(height, width, self.downsampling)
        frames = (latent_frames(images.shape[2], self.time_downsampling),) if self._axes == 3 else ()
        if not len(images):
            return torch.zeros(0, *frames, height // self.downsampling, width // self.downsampling, dtype=torch.int32)
        with self.runtime.autocast(self.config.precision.compute_dtype):
            latents = self.network.encode(images.to(self.device, self._dtype))
            return encode_indices(self.config.quantizer, latents, self.network.codebook).to(torch.int32)

    def _codes(self, ids: Int[np.ndarray, "B *s"]) -> Float[Tensor, "B *s D"]:
        return lookup(self.config.quantizer, torch.from_numpy(ids).to(self.device), self.network.codebook)

    def _decoded(self, ids: Int[np.ndarray, "B *s"]) -> Float[Tensor, "B 3 *S"]:
        if not len(ids):
            height, width = (side * self.downsampling for side in ids.shape[-2:])
            frames = tuple((count - 1) * self.time_downsampling + 1 for count in ids.shape[1:-2])
            return torch.zeros(0, self.config.model.image_channels, *frames, height, width)
        with self.runtime.autocast(self.config.precision.compute_dtype):
            return self.network.decode(self._codes(ids.astype(np.int64)).to(self._dtype)).clamp(-1, 1)

    def _batch(self, images: Any) -> tuple[Float[Tensor, "B 3 *S"], bool]:
        """Images as a batch of floats, and whether it was one; tensors stay on their device."""
        channels = self.config.model.image_channels
        if not isinstance(images, Tensor):
            given = to_images(images, channels, self._axes)
            floats = given.array if given.array.dtype in (np.float32, np.float64) else given.array.astype(np.float32)
            return torch.from_numpy(np.require(floats, requirements="W")).movedim(-1, 1), given.single
        images = images.as_subclass(Tensor)
        single = images.ndim == self._axes + 1
        batch = images[None] if single else images
        check_shape(batch.shape, channels, channels_first=True, given=images.shape, axes=self._axes)
        if images.dtype == torch.uint8:
            return batch.float() / 127.5 - 1, single
        check_floating(images.dtype, images.is_floating_point())
        if images.numel():
            low, high = torch.aminmax(images.detach())
            check_range(float(low), float(high))
        return batch, single
