"""Generating tokens: guidance, filters, and the loop over the positions.

Shape legend: B samples, T tokens, S sub-tokens per position, V codes of one sub-token.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from voken_common.config.schema.sampling import COSINE_POWER, Guidance, Sampling
from voken_torch.device.graphs import captured
from voken_torch.models.generator import Adaptive, Factorized
from voken_torch.models.transformer import Position, at


def filter_logits(logits: Float[Tensor, "B V"], top_k: int, top_p: float) -> Float[Tensor, "B V"]:
    """Set to minus infinity what is not drawn: first all below the k-th logit (ties with it stay), then of what is left
    every code whose more likely codes already hold more than `top_p`. The most likely code always stays.
    """
    if 0 < top_k < logits.shape[-1]:
        threshold = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        shares = ordered.softmax(dim=-1)
        before = shares.cumsum(dim=-1).roll(1, dims=-1)
        before[..., 0] = 0
        dropped = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before > top_p)
        logits = logits.masked_fill(dropped, -torch.inf)
    return logits


def guidance_scale(scale: float, guidance: Guidance, number: int, positions: int) -> float:
    """The scale at one of `positions` positions."""
    share = number / max(positions - 1, 1)
    if guidance == "linear":
        return 1 + (scale - 1) * share
    if guidance == "power-cosine":
        return 1 + (scale - 1) * 0.5 * (1 - math.cos(math.pi * share**COSINE_POWER))
    return scale


def uniforms(seeds: Sequence[int], positions: int, parts: int) -> Float[Tensor, "B T S"]:
    """A random number in [0, 1) per draw, from each sample's own seed and on the CPU: a sample depends neither on what
    it is batched with nor on the device.
    """
    streams = [np.random.Generator(np.random.PCG64(seed)) for seed in seeds]
    return torch.from_numpy(np.stack([stream.random((positions, parts), np.float32) for stream in streams]))


def draw(
    logits: Float[Tensor, "B V"], uniform: Float[Tensor, "B 1"], settings: Sampling, part: int
) -> Int[Tensor, " B"]:
    """One code per sample from guided logits: the first at which the cumulative probability exceeds the number."""
    temperature = settings.temperature[part]
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = filter_logits(logits / temperature, settings.top_k[part], settings.top_p[part])
    cumulative = logits.softmax(dim=-1).cumsum(dim=-1)
    # The last sum is 1 but for rounding. A code that was filtered out adds nothing, so that it is never the first.
    return (cumulative <= uniform * cumulative[:, -1:]).sum(dim=-1)


class _Loop:
    """A batch of samples, one position after the other, in tensors that stay where they are."""

    def __init__(
        self,
        model: Factorized | Adaptive,
        labels: Int[Tensor, " B"],
        seeds: Sequence[int],
        settings: Sampling,
        cache_dtype: torch.dtype | None,
    ):
        config, self._count = model.config, labels.shape[0]
        self._model, self._settings = model, settings
        if settings.guided:
            labels = torch.cat([labels, torch.full_like(labels, config.classes)])
        positions, parts = config.tokens, len(config.vocabularies)
        self._prepared = model.prepare(labels)
        condition = self._prepared.condition
        self._caches = model.caches(labels.shape[0], condition, cache_dtype)
        self._x = torch.empty_like(condition[:, None])
        self._uniforms = uniforms(seeds, positions, parts).to(labels.device)
        scales = [
            [guidance_scale(scale, settings.guidance, number, positions) for scale in settings.scale]
            for number in range(positions)
        ]
        dtype = torch.promote_types(condition.dtype, torch.float32)
        self._scales = torch.tensor(scales, dtype=dtype, device=labels.device)
        self.tokens = labels.new_zeros((self._count, positions, parts))
        self.restart()

    def restart(self) -> None:
        """Stand before the first position."""
        self._x.copy_(self._prepared.condition[:, None])

    def __call__(self, number: Position) -> None:
        """Generate one position; those before it have been."""

        def choose(logits: Tensor, part: int) -> Tensor:
            if self._settings.guided:
                scale = at(self._scales[:, part], 0, number)
                with_class, without = logits.split(self._count)
                logits = without + scale * (with_class - without)
            chosen = draw(logits, at(self._uniforms[:, :, part], 1, number), self._settings, part)
            return torch.cat([chosen, chosen]) if self._settings.guided else chosen

        chosen = self._model.position(self._prepared, self._x, self._caches, number, choose)
        if isinstance(number, int):
            self.tokens[:, number] = chosen[: self._count]
        else:
            self.tokens.index_copy_(1, number, chosen[: self._count, None])
        self._x.copy_(self._model.embed(chosen[:, None]))


@torch.inference_mode()
def generate(
    model: Factorized | Adaptive,
    labels: Int[Tensor, " B"],
    seeds: Sequence[int],
    settings: Sampling,
    cache_dtype: torch.dtype | None = None,
    positions: int | None = None,
    graphs: bool = False,
) -> Int[Tensor, "B T S"]:
    """All tokens of one sample per label.

    Args:
        model: a generator in evaluation mode.
        labels: a class per sample, on the model's device.
        seeds: one per sample: a sample depends on its own seed and label alone, whatever it is batched with.
        settings: how to draw.
        cache_dtype: of keys and values; None: that of the computation.
        positions: stop after so many; None: all of the grid.
        graphs: let a CUDA or NPU device record one position and replay it, which reads the whole cache at each; without
            them, and on a CPU, only its filled part is read. Not for weights that are split over processes.
    """
    loop = _Loop(model, labels, seeds, settings, cache_dtype)
    positions = positions or model.config.tokens
    if labels.device.type == "cpu" or not graphs:
        for number in range(positions):
            loop(number)
    else:
        current = torch.zeros(1, dtype=torch.int64, device=labels.device)
        step = captured(functools.partial(loop, current), labels.device)
        loop.restart()
        for number in range(positions):
            current.fill_(number)
            step()
    return loop.tokens[:, :positions]
