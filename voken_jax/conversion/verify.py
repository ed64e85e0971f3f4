"""`--verify`: do two checkpoints encode and decode alike, in both frameworks?

Shape legend: B images or clips, S pixels (H W, or T H W), s tokens, D code dimension.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from voken_common.checkpoints.conversion.contents import Arrays
from voken_common.checkpoints.weight_names import to_jax
from voken_common.config.loading import with_overrides
from voken_common.config.schema.quantizer import QuantizerConfig
from voken_common.config.schema.tokenizer import Config
from voken_jax.conversion import torch_bridge
from voken_jax.models.functional import Weights
from voken_jax.quantizers.configured import encode_indices, lookup
from voken_jax.tokenizer.state import build_autoencoder

IMAGES, TOKENS_PER_SIDE, SEED = 2, 8, 0
LATENT_NOISE = 1e-3
"""Relative difference of latents that two float32 implementations of a deep network may show."""
LARGEST_DIFFERENCE = 1e-3
"""Of reconstructions in [-1, 1], and of logits relative to the largest."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One implementation with one set of weights, against the source in JAX.

    Attributes:
        what: whose weights, where.
        equal, near_ties, total: tokens with the same id, with another id that is as near as rounding, and all.
        difference: largest difference of what the same ids decode to, or of other results.
        of: what the difference is of.
    """

    what: str
    equal: int
    near_ties: int
    total: int
    difference: float
    of: str = "reconstructions"

    @property
    def good(self) -> bool:
        """True if the two agree."""
        return self.equal + self.near_ties == self.total and self.difference <= LARGEST_DIFFERENCE

    def __str__(self) -> str:
        ties = f" ({self.near_ties} of the others are near-ties)" if self.equal < self.total else ""
        return (
            f"{self.what}: ids equal: {self.equal} of {self.total}{ties}, largest difference of {self.of} "
            f"{self.difference:.1e}"
        )


def compare(config: Config, source: Arrays, target: Arrays) -> list[Comparison]:
    """Encode and decode seeded images or clips with both sets of weights (torch names), in JAX and, if there, PyTorch.

    Everything is computed in the precision of the parameters, since lower ones hide what is compared.
    """
    config = with_overrides(config, [f"precision.compute_dtype={config.precision.param_dtype}"])
    side = TOKENS_PER_SIDE * config.model.downsampling
    frames = (2 * config.model.time_downsampling + 1,) if config.model.is_video else ()
    shape = (IMAGES, *frames, side, side, config.model.image_channels)
    images = np.random.default_rng(SEED).uniform(-1, 1, shape).astype(config.precision.param_dtype)
    with jax.enable_x64(config.precision.param_dtype == "float64"):
        programs = _Programs(config)
        before: Any = to_jax(source)
        after: Any = to_jax(target)
        latents, ids = programs.encode(before, images)
        decoded = programs.decode(before, ids)
        found = {
            "target in JAX": (np.asarray(programs.encode(after, images)[1]), np.asarray(programs.decode(after, ids)))
        }
        if torch_bridge.is_installed():
            for name, weights in (("source", source), ("target", target)):
                found[f"{name} in PyTorch"] = (
                    torch_bridge.encode(config, weights, images),
                    torch_bridge.decode(config, weights, np.asarray(ids)),
                )
        codebook = programs.codebook(before)
        return [
            Comparison(
                what=what,
                equal=int((other == ids).sum()),
                near_ties=int(_near_ties(config.quantizer, latents, ids, jnp.asarray(other), codebook).sum()),
                total=ids.size,
                difference=float(np.abs(image - decoded).max()),
            )
            for what, (other, image) in found.items()
        ]


class _Programs:
    """The network compiled once for all weights."""

    def __init__(self, config: Config):
        self._config, self._network = config, build_autoencoder(config)
        self.encode, self.decode = jax.jit(self._encode), jax.jit(self._decode)

    def codebook(self, weights: Weights) -> Float[Array, "K D"] | None:
        return self._network.bind(weights).codebook

    def _encode(self, weights: Weights, images: Array) -> tuple[Float[Array, "B *s D"], Int[Array, "B *s"]]:
        model = self._network.bind(weights)
        latents = model.encode(images)
        return latents, encode_indices(self._config.quantizer, latents, model.codebook)

    def _decode(self, weights: Weights, ids: Int[Array, "B *s"]) -> Float[Array, "B *S 3"]:
        model = self._network.bind(weights)
        return jnp.clip(model.decode(lookup(self._config.quantizer, ids, model.codebook)), -1.0, 1.0)


def _near_ties(
    quantizer: QuantizerConfig,
    latents: Float[Array, "B *s D"],
    ids: Int[Array, "B *s"],
    others: Int[Array, "B *s"],
    codebook: Float[Array, "K D"] | None,
) -> Array:
    """Find the ids that differ because of a tie: changing the latent by LATENT_NOISE of its length can explain them.

    Every quantizer here compares inner products <z, c> (squared distances do, up to what does not depend on z), and
    <z + d, c - c'> changes by at most |d| |c - c'|.
    """
    codes, other_codes = (lookup(quantizer, numbers, codebook) for numbers in (ids, others))
    offset = jnp.zeros(ids.shape)
    if quantizer.kind == "vq":
        if quantizer.l2_normalize:
            latents, codes, other_codes = (
                x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (latents, codes, other_codes)
            )
        offset = (jnp.square(other_codes).sum(-1) - jnp.square(codes).sum(-1)) / 2
    between = codes - other_codes
    gap = jnp.abs((latents * between).sum(-1) + offset)
    allowed = LATENT_NOISE * jnp.linalg.norm(latents, axis=-1) * jnp.linalg.norm(between, axis=-1)
    return (ids != others) & (gap <= allowed)
