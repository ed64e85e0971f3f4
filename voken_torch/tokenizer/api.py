"""The public Tokenizer: load a checkpoint, turn images into ids and ids into images.

Shape legend: B batch, H/W pixels, h/w tokens (H / downsampling, W / downsampling), D code dimension.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from voken_common.checkpoints.steps import Step, Weights
from voken_common.checkpoints.weight_names import require_same_shapes
from voken_common.config.tokenizer import Config
from voken_common.data.tokens.format import fingerprint
from voken_common.pixels import pad_to_multiple
from voken_torch.checkpoints import load as loading
from voken_torch.device.runtime import Runtime
from voken_torch.models.autoencoder import Autoencoder
from voken_torch.models.layers import Policy, plain_attention
from voken_torch.quantizers.configured import code_indices, encode_indices, lookup


class Tokenizer:
    """A trained image tokenizer.

    Args:
        config: the run it comes from; its `model`, `quantizer` and `precision` are used.
        weights: the generator's weights by name. They are moved to the device, not copied where they are there.
        runtime: where to compute; the CPU by default.

    Raises:
        NameMismatch: the weights are not those of the network.
        DeviceError: the device cannot compute in the configured precision.
    """

    def __init__(self, config: Config, weights: dict[str, Tensor], runtime: Runtime | None = None):
        self.config, self.runtime = config, runtime or Runtime()
        precision = config.precision
        self.runtime.check_precision(precision.param_dtype, precision.compute_dtype)
        self._dtype = getattr(torch, precision.param_dtype)
        with torch.device("meta"):
            network = Autoencoder(
                config.model, config.quantizer, Policy(attention=self.runtime.attention() or plain_attention)
            )
        require_same_shapes(weights, network.state_dict(), f"weights of {config.name}")
        placed = {name: weight.to(self.runtime.device, self._dtype) for name, weight in weights.items()}
        network.load_state_dict(placed, strict=True, assign=True)
        self._network = network.requires_grad_(False).eval()

    @classmethod
    def load(
        cls,
        checkpoint: str | Path,
        *,
        step: Step = "latest",
        weights: Weights | None = None,
        runtime: Runtime | None = None,
        verify: bool = True,
    ) -> Tokenizer:
        """Read a checkpoint; nothing but its folder or file is needed.

        Args:
            checkpoint: a work directory, a checkpoint file, or a .safetensors file of voken.
            step: which step of a work directory.
            weights: `ema` (averages, for evaluation), `raw`, or None: the averages if there are any.
            runtime: where to compute; the CPU by default.
            verify: whether to verify the checksums of the file.

        Raises:
            CheckpointError: there is no such checkpoint, it is damaged, or it cannot be read.
        """
        found = loading.load(checkpoint, step=step, weights=weights, verify=verify)
        return cls(found.meta.tokenizer, found.weights, runtime)

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
        return fingerprint(self.config, {k: v.cpu().numpy() for k, v in self._network.state_dict().items()})

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Int[Tensor, "B h w"]:
        """Ids (int32) of images in [-1, 1].

        Raises:
            ValueError: another shape or type, or sides that are not multiples of `downsampling`.
        """
        images = self._checked(images)
        height, width = images.shape[2:]
        if height % self.downsampling or width % self.downsampling:
            raise ValueError(
                f"images are {height} x {width}: both sides must be multiples of {self.downsampling}; "
                "`reconstruct` pads and crops, `voken_common.pixels.pad_to_multiple` pads"
            )
        with self.runtime.autocast(self.config.precision.compute_dtype):
            latents = self._network.encode(images.to(self.runtime.device, self._dtype))
            return encode_indices(self.config.quantizer, latents, self._network.codebook).to(torch.int32)

    def codes(self, ids: Int[Tensor, "B h w"]) -> Float[Tensor, "B h w D"]:
        """What the decoder sees for these ids; `ids_of` inverts it exactly."""
        return lookup(self.config.quantizer, self._checked_ids(ids), self._network.codebook)

    def ids_of(self, codes: Float[Tensor, "B h w D"]) -> Int[Tensor, "B h w"]:
        """Ids of codes as `codes` gives them: the code at distance 0."""
        codes = codes.to(self.runtime.device)
        return code_indices(self.config.quantizer, codes, self._network.codebook).to(torch.int32)

    @torch.no_grad()
    def decode(self, ids: Int[Tensor, "B h w"]) -> Float[Tensor, "B 3 H W"]:
        """Images in [-1, 1] of ids, any grid size.

        Raises:
            ValueError: not a (B, h, w) tensor of integers, or an id outside the codebook.
        """
        with self.runtime.autocast(self.config.precision.compute_dtype):
            return self._network.decode(self.codes(ids).to(self._dtype)).clamp(-1, 1)

    def reconstruct(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        """Encode and decode images of any size, padded with grey to multiples of `downsampling` and cropped back."""
        pixels = self._checked(images).movedim(1, -1).cpu().numpy()
        padded, region = pad_to_multiple(pixels, self.downsampling)
        result = self.decode(self.encode(torch.from_numpy(padded).movedim(-1, 1)))
        return result[:, :, region.top : region.bottom, region.left : region.right]

    def _checked(self, images: Tensor) -> Tensor:
        channels = self.config.model.image_channels
        if images.ndim != 4 or images.shape[1] != channels or 0 in images.shape:
            raise ValueError(f"images have shape {tuple(images.shape)}, expected (B, {channels}, H, W), channels first")
        if not images.is_floating_point():
            raise ValueError(
                f"images are {images.dtype}, expected floats in [-1, 1]: uint8 pixels become them by x / 127.5 - 1"
            )
        return images

    def _checked_ids(self, ids: Tensor) -> Tensor:
        if ids.ndim != 3 or ids.is_floating_point() or ids.dtype in (torch.bool, torch.complex64):
            raise ValueError(f"ids are {ids.dtype} of shape {tuple(ids.shape)}, expected integers (B, h, w)")
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.codebook_size:
            raise ValueError(
                f"ids run from {int(ids.min())} to {int(ids.max())}, expected 0 to {self.codebook_size - 1}: "
                "they belong to another tokenizer"
            )
        return ids.to(self.runtime.device, torch.int64)
