"""Generating tokens: guidance, filters, and one compiled loop over the positions.

Shape legend: B samples, T tokens, S sub-tokens per position, V codes of one sub-token.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from voken_common.config.schema.sampling import COSINE_POWER, Guidance, Sampling
from voken_jax.models.transformer import enlarged

SEGMENT = 64
"""Positions for which the cache is enlarged at once. All of it is read at every position, so that smaller segments read
less of what is still empty; each is a loop of its own in the program."""


@functools.cache
def compiler_options() -> dict[str, str]:
    """Return the compiler options that suit `generate`, for `jax.jit(..., compiler_options=)`.

    On a CPU: without YNNPACK, where the compiler has it, whose products of a few rows with the weights take up to twice
    as long as those without (docs/performance.md).
    """
    if jax.default_backend() != "cpu":
        return {}
    options = {"xla_cpu_experimental_ynn_fusion_type": ""}
    try:
        jax.jit(lambda x: x, compiler_options=options).lower(0).compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return options


def filter_logits(logits: Float[Array, "B V"], top_k: int, top_p: float) -> Float[Array, "B V"]:
    """Set to minus infinity what is not drawn: first all below the k-th logit (ties with it stay), then of what is left
    every code whose more likely codes already hold more than `top_p`. The most likely code always stays.
    """
    if 0 < top_k < logits.shape[-1]:
        threshold = lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits < threshold, -jnp.inf, logits)
    if top_p < 1:
        order = jnp.argsort(-logits, axis=-1)
        ordered = jnp.take_along_axis(logits, order, axis=-1)
        cumulative = jnp.cumsum(jax.nn.softmax(ordered), axis=-1)
        before = jnp.concatenate([jnp.zeros_like(cumulative[..., :1]), cumulative[..., :-1]], axis=-1)
        dropped = jnp.put_along_axis(jnp.zeros(logits.shape, bool), order, before > top_p, axis=-1, inplace=False)
        logits = jnp.where(dropped, -jnp.inf, logits)
    return logits


def guidance_scale(scale: float, guidance: Guidance, number: Int[Array, ""], positions: int) -> Float[Array, ""]:
    """The scale at one of `positions` positions."""
    share = number / max(positions - 1, 1)
    if guidance == "linear":
        return 1 + (scale - 1) * share
    if guidance == "power-cosine":
        return 1 + (scale - 1) * 0.5 * (1 - jnp.cos(jnp.pi * share**COSINE_POWER))
    return jnp.full((), scale)


def draw(logits: Float[Array, "B V"], keys: PRNGKeyArray, settings: Sampling, part: int) -> Int[Array, "B"]:
    """One code per sample from guided logits, with a key per sample."""
    temperature = settings.temperature[part]
    if temperature == 0:
        return logits.argmax(axis=-1)
    logits = filter_logits(logits / temperature, settings.top_k[part], settings.top_p[part])
    return jax.vmap(jax.random.categorical)(keys, logits)


def generate(
    model: Any,
    labels: Int[Array, "B"],
    keys: PRNGKeyArray,
    settings: Sampling,
    cache_dtype: Any = None,
    positions: int | None = None,
) -> Int[Array, "B T S"]:
    """All tokens of one sample per label; traceable.

    Args:
        model: a generator of `voken_jax.models.generator` holding its weights.
        labels: a class per sample.
        keys: a key per sample: a sample depends on its own key and label alone, whatever it is batched with.
        settings: how to draw.
        cache_dtype: of keys and values; None: that of the computation.
        positions: stop after so many; None: all of the grid.
    """
    config, count = model.config, labels.shape[0]
    parts = len(config.vocabularies)
    if settings.guided:
        labels = jnp.concatenate([labels, jnp.full_like(labels, config.classes)])
    prepared = model.prepare(labels)

    def step(carry: tuple[Array, Any], number: Array) -> tuple[tuple[Array, Any], Array]:
        x, caches = carry

        def choose(logits: Array, part: int) -> Array:
            if settings.guided:
                scale = guidance_scale(settings.scale[part], settings.guidance, number, config.tokens)
                with_class, without = logits[:count], logits[count:]
                logits = without + scale.astype(logits.dtype) * (with_class - without)
            own = jax.vmap(lambda key: jax.random.fold_in(key, number * parts + part))(keys)
            chosen = draw(logits, own, settings, part)
            return jnp.concatenate([chosen, chosen]) if settings.guided else chosen

        tokens, caches = model.position(prepared, x, caches, number, choose)
        return (model.embed(tokens[:, None]), caches), tokens[:count]

    x, caches = prepared.condition[:, None], model.caches(labels.shape[0], 0, cache_dtype)
    stop, segments = positions or config.tokens, []
    for start in range(0, stop, SEGMENT):
        numbers = jnp.arange(start, min(start + SEGMENT, stop))
        (x, caches), tokens = lax.scan(step, (x, enlarged(caches, start + len(numbers))), numbers)
        segments.append(tokens)
    return jnp.concatenate(segments).swapaxes(0, 1)
