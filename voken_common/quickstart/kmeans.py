"""A k-means vector quantizer of square patches: what a tokenizer of as many bits per pixel has to be compared with.

Every patch of P x P pixels becomes the number of its nearest centre, and a number becomes its centre again. There is
nothing to train but the centres (Lloyd's algorithm, S. Lloyd, "Least Squares Quantization in PCM", 1982).
Shape letters: b images, h w pixels, k centres, n patches.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32, Int, Num, UInt8

from voken_common.pixels import from_uint8, to_uint8

PATCHES_PER_CENTRE = 24
ROUNDS = 10


@dataclasses.dataclass(frozen=True)
class PatchKMeans:
    """Centres of patches, values in [-1, 1].

    Attributes:
        centres: flattened patches.
        patch: side of a patch in pixels.
    """

    centres: Float32[np.ndarray, "k p"]
    patch: int

    @property
    def bits_per_pixel(self) -> float:
        """Bits of an id over the pixels it stands for."""
        return float(np.log2(len(self.centres))) / self.patch**2

    def encode(self, images: Num[np.ndarray, "b h w 3"]) -> Int[np.ndarray, "b hh ww"]:
        """Ids of images whose sides are divisible by the patch: bytes, or floats in [-1, 1].

        Raises:
            ValueError: they are not divisible.
        """
        from scipy.cluster.vq import vq

        batch, height, width, _ = images.shape
        if height % self.patch or width % self.patch:
            raise ValueError(f"images of {height}x{width} pixels; expected sides divisible by the patch, {self.patch}")
        patches = patches_of(from_uint8(to_uint8(images)), self.patch)
        return vq(patches, self.centres)[0].reshape(batch, height // self.patch, width // self.patch)

    def decode(self, ids: Int[np.ndarray, "b hh ww"]) -> Float32[np.ndarray, "b h w 3"]:
        """Images in [-1, 1]."""
        batch, rows, columns = ids.shape
        patches = self.centres[ids].reshape(batch, rows, columns, self.patch, self.patch, 3)
        return patches.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * self.patch, columns * self.patch, 3)


def patches_of(images: Float[np.ndarray, "b h w 3"], patch: int) -> Float[np.ndarray, "n p"]:
    """Patches side by side from the top left, flattened; what is left over at the right and below is cut off."""
    batch, height, width, channels = images.shape
    rows, columns = height // patch, width // patch
    cut = images[:, : rows * patch, : columns * patch].reshape(batch, rows, patch, columns, patch, channels)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(batch * rows * columns, -1)


def fit_kmeans(images: Sequence[UInt8[np.ndarray, "h w 3"]], patch: int, codes: int, seed: int = 0) -> PatchKMeans:
    """Centres of patches drawn in equal parts from every image, at random places.

    Args:
        images: of any sizes.
        patch: side of a patch in pixels.
        codes: how many centres.
        seed: of the draw and of the first centres.

    Raises:
        ValueError: the images hold fewer patches than there are codes.
    """
    from scipy.cluster.vq import kmeans2

    generator = np.random.default_rng(seed)
    share = -(-PATCHES_PER_CENTRE * codes // len(images))
    drawn = []
    for image in images:
        top, left = generator.integers(patch, size=2)
        patches = patches_of(from_uint8(image[top:, left:])[None], patch)
        drawn.append(patches[generator.permutation(len(patches))[:share]])
    patches = np.concatenate(drawn)
    if len(patches) < codes:
        raise ValueError(
            f"{len(patches)} patches of {patch}x{patch} pixels for {codes} codes; expected at least as many"
        )
    # A centre that loses all its patches stays where it was, and scipy would say so at every fit.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "One of the clusters is empty")
        centres, _ = kmeans2(patches, codes, iter=ROUNDS, minit="points", seed=seed)
    return PatchKMeans(centres.astype(np.float32), patch)
