"""Decoded images in PyTorch: a tensor that also becomes PIL images and files."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from voken_common.api.pictures import Pictures


class Images(Pictures, Tensor):
    """Images in [-1, 1], (3, H, W) or (B, 3, H, W), channels first: a tensor, and what is computed of it is one too."""

    # Results of operations are plain tensors: they need not be images any more.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def of(images: Tensor) -> Images:
        """Wrap a tensor, sharing its memory."""
        found: Images = images.as_subclass(Images)
        return found

    def channels_last(self) -> np.ndarray:
        """The images as a NumPy array (H, W, 3) or (B, H, W, 3), in float32 at least."""
        images = self.as_subclass(Tensor).detach().movedim(-3, -1).cpu()
        return (images if images.dtype == torch.float64 else images.float()).numpy()
