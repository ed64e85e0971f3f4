"""Generating tokens: guidance, filters, and the loop over the positions.

Shape legend: B samples, T tokens, S sub-tokens per position, V codes of one sub-token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from voken_common.sampling import COSINE_POWER, Guidance, Sampling
from voken_torch.models.generator import Adaptive, Factorized


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


class Draws:
    """Random numbers of every sample from its own seed: a sample does not depend on what it is batched with."""

    def __init__(self, seeds: Sequence[int]):
        self._streams = [np.random.Generator(np.random.PCG64(seed)) for seed in seeds]

    def gumbel(self, like: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        """Standard Gumbel noise, drawn on the CPU so that every device draws the same."""
        noise = np.stack([stream.gumbel(size=like.shape[-1]) for stream in self._streams])
        return torch.from_numpy(noise).to(like)


def draw(logits: Float[Tensor, "B V"], draws: Draws, settings: Sampling, part: int) -> Int[Tensor, " B"]:
    """One code per sample from guided logits."""
    temperature = settings.temperature[part]
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = filter_logits(logits / temperature, settings.top_k[part], settings.top_p[part])
    return (logits + draws.gumbel(logits)).argmax(dim=-1)


@torch.inference_mode()
def generate(
    model: Factorized | Adaptive,
    labels: Int[Tensor, " B"],
    seeds: Sequence[int],
    settings: Sampling,
    cache_dtype: torch.dtype | None = None,
) -> Int[Tensor, "B T S"]:
    """All tokens of one sample per label.

    Args:
        model: a generator in evaluation mode.
        labels: a class per sample.
        seeds: one per sample: a sample depends on its own seed and label alone, whatever it is batched with.
        settings: how to draw.
        cache_dtype: of keys and values; None: that of the computation.
    """
    config, count = model.config, labels.shape[0]
    guided = any(scale != 1 for scale in settings.scale)
    if guided:
        labels = torch.cat([labels, torch.full_like(labels, config.classes)])
    prepared = model.prepare(labels)
    draws = Draws(seeds)
    caches = model.caches(labels.shape[0], prepared.condition, cache_dtype)
    x, tokens = prepared.condition[:, None], []
    for number in range(config.tokens):

        def choose(logits: Tensor, part: int, number: int = number) -> Tensor:
            if guided:
                scale = guidance_scale(settings.scale[part], settings.guidance, number, config.tokens)
                with_class, without = logits.split(count)
                logits = without + scale * (with_class - without)
            chosen = draw(logits, draws, settings, part)
            return torch.cat([chosen, chosen]) if guided else chosen

        chosen = model.position(prepared, x, caches, number, choose)
        tokens.append(chosen[:count])
        x = model.embed(chosen[:, None])
    return torch.stack(tokens, dim=1)
