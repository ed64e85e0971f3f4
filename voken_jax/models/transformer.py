"""The transformer core of both generator families: RMS norm, rotary attention, SwiGLU, and how layers are run.

Names are those of the published checkpoints. Whole sequences run through layers that are stacked inside the program and
scanned, so that neither compile time nor program size grows with depth. One position at a time, the layers follow each
other in the program: there the weights are all that is read, and slicing them out of a stack would copy every one.
Shape legend: B batch, T positions, C width, N heads, H head width, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from voken_common.config.schema.transformer import TransformerConfig
from voken_jax.models.layers import Policy, at_least_float32
from voken_jax.parallel.sharding import SAMPLES, constrain

EPSILON = 1e-5
_INITIAL = nnx.initializers.normal(0.02)


class Rotary(NamedTuple):
    """Rows of the rotary table: cosine and sine per position and pair of features."""

    cosine: Float[Array, "T H/2"]
    sine: Float[Array, "T H/2"]


class KeysValues(NamedTuple):
    """Keys and values of every position of one layer; positions not yet visited hold zeros."""

    keys: Float[Array, "B N T H"]
    values: Float[Array, "B N T H"]


class Modulation(NamedTuple):
    """Modulation of one block by the class, in the order of its linear layer's outputs."""

    attention_gate: Float[Array, "B 1 C"]
    feed_forward_gate: Float[Array, "B 1 C"]
    attention_scale: Float[Array, "B 1 C"]
    feed_forward_scale: Float[Array, "B 1 C"]
    attention_shift: Float[Array, "B 1 C"]
    feed_forward_shift: Float[Array, "B 1 C"]


def rotary_table(config: TransformerConfig, dtype: Any = jnp.float32) -> Rotary:
    """Row 0 is the class token's, zero in cosine and sine, so that its query and key vanish; row s is cell s - 1.

    Of the pairs of features the first half turns with the row of a cell, the second with its column.
    """
    quarter = config.head_width // 4
    frequencies = 10000.0 ** (-4 * jnp.arange(quarter, dtype=dtype) / config.head_width)
    angles = jnp.arange(config.grid, dtype=dtype)[:, None] * frequencies
    rows = jnp.repeat(angles, config.grid, axis=0)
    columns = jnp.tile(angles, (config.grid, 1))
    cells = jnp.concatenate([rows, columns], axis=1)
    zero = jnp.zeros((1, 2 * quarter), dtype)
    return Rotary(*(jnp.concatenate([zero, part]) for part in (jnp.cos(cells), jnp.sin(cells))))


def rotate(x: Float[Array, "B T N H"], rows: Rotary) -> Float[Array, "B T N H"]:
    """Turn interleaved pairs (a, b) to (a cos - b sin, b cos + a sin), in float32 at least."""
    wide = at_least_float32(x)
    a, b = wide[..., 0::2], wide[..., 1::2]
    cosine, sine = (part[:, None, :].astype(wide.dtype) for part in rows)
    turned = jnp.stack([a * cosine - b * sine, b * cosine + a * sine], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S N H"],
    v: Float[Array, "B S N H"],
    mask: Float[Array, "T S"] | None = None,
) -> Float[Array, "B T N H"]:
    """Softmax attention, causal unless a mask (True: visible) says otherwise."""
    if q.dtype != jnp.float64:
        return jax.nn.dot_product_attention(
            q, k, v, mask=None if mask is None else mask[None, None], is_causal=mask is None
        )
    # The library's softmax is float32.
    logits = jnp.einsum("btnh,bsnh->bnts", q, k) * q.shape[-1] ** -0.5
    mask = jnp.tril(jnp.ones((q.shape[1], k.shape[1]), bool)) if mask is None else mask
    return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(jnp.where(mask, logits, -jnp.inf)), v)


def dropout(x: Array, rate: float, key: PRNGKeyArray | None) -> Array:
    """Zero features at this rate and scale up the others; nothing without a key."""
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def linear(inputs: int, outputs: int, *, policy: Policy, rngs: Any, bias: bool = False) -> nnx.Linear:
    """Dense layer with normal initial weights of deviation 0.02."""
    return nnx.Linear(
        inputs,
        outputs,
        use_bias=bias,
        dtype=policy.compute_dtype,
        param_dtype=policy.param_dtype,
        kernel_init=_INITIAL,
        rngs=rngs,
    )


class RMSNorm(nnx.Module):
    """x / root mean square, times a scale; computed in float32 at least."""

    def __init__(self, width: int, *, policy: Policy):
        self.scale = nnx.Param(jnp.ones((width,), policy.param_dtype))

    def __call__(self, x: Float[Array, "B T C"]) -> Float[Array, "B T C"]:
        """Normalised features in the dtype of x."""
        wide = at_least_float32(x)
        normed = wide * lax.rsqrt(jnp.square(wide).mean(axis=-1, keepdims=True) + EPSILON)
        return normed.astype(x.dtype) * self.scale[...].astype(x.dtype)


class Attention(nnx.Module):
    """Multi-head attention with a fused projection."""

    def __init__(self, config: TransformerConfig, *, policy: Policy, rngs: Any):
        self.heads = config.heads
        self.wqkv = linear(config.width, 3 * config.width, policy=policy, rngs=rngs)
        self.wo = linear(config.width, config.width, policy=policy, rngs=rngs)

    def project(self, x: Float[Array, "B T C"], rows: Rotary) -> tuple[Array, Array, Array]:
        """Queries, keys and values (B, T, N, H), the first two turned."""
        batch, length, width = x.shape
        q, k, v = jnp.split(self.wqkv(x), 3, axis=-1)
        heads = (part.reshape(batch, length, self.heads, width // self.heads) for part in (q, k, v))
        q, k, v = (constrain(part, SAMPLES, None, "model") for part in heads)
        return rotate(q, rows), rotate(k, rows), v

    def merge(self, x: Float[Array, "B T N H"]) -> Float[Array, "B T C"]:
        """Heads side by side, projected."""
        return self.wo(x.reshape(*x.shape[:2], -1))


class FeedForward(nnx.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, config: TransformerConfig, *, policy: Policy, rngs: Any):
        width, hidden = config.width, config.feed_forward_width
        self.w1 = linear(width, hidden, policy=policy, rngs=rngs)
        self.w3 = linear(width, hidden, policy=policy, rngs=rngs)
        self.w2 = linear(hidden, width, policy=policy, rngs=rngs)

    def __call__(self, x: Float[Array, "B T C"]) -> Float[Array, "B T C"]:
        """Features of the same width."""
        return self.w2(constrain(jax.nn.silu(self.w1(x)) * self.w3(x), SAMPLES, None, "model"))


class Block(nnx.Module):
    """One layer; `adaptive` blocks are modulated by a condition."""

    def __init__(self, config: TransformerConfig, *, adaptive: bool, policy: Policy, rngs: Any):
        self.residual_dropout, self.feed_forward_dropout = config.residual_dropout, config.feed_forward_dropout
        self.attention = Attention(config, policy=policy, rngs=rngs)
        self.feed_forward = FeedForward(config, policy=policy, rngs=rngs)
        self.attention_norm = RMSNorm(config.width, policy=policy)
        self.ffn_norm = RMSNorm(config.width, policy=policy)
        if adaptive:
            self.ada_lin = nnx.Dict({"1": linear(config.width, 6 * config.width, policy=policy, rngs=rngs, bias=True)})
            scale = jnp.repeat(jnp.array([config.modulation_scale] * 2 + [0.5] * 4), config.width)
            kernel = self.ada_lin["1"].kernel
            kernel.set_value((kernel[...] * scale).astype(policy.param_dtype))

    def modulation(self, condition: Float[Array, "B C"]) -> Modulation:
        """The six parts that a condition becomes."""
        parts = constrain(self.ada_lin["1"](constrain(jax.nn.silu(condition), SAMPLES)), SAMPLES)[:, None]
        return Modulation(*jnp.split(parts, 6, axis=-1))

    def before_attention(self, x: Float[Array, "B T C"], modulation: Modulation | None) -> Float[Array, "B T C"]:
        """Compute the inputs of attention."""
        normed = self.attention_norm(x)
        if modulation is None:
            return normed
        return normed * (1 + modulation.attention_scale) + modulation.attention_shift

    def after_attention(
        self,
        x: Float[Array, "B T C"],
        mixed: Float[Array, "B T N H"],
        modulation: Modulation | None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "B T C"]:
        """Both residual additions."""
        keys = (None, None) if key is None else tuple(jax.random.split(key))
        update = dropout(self.attention.merge(mixed), self.residual_dropout, keys[0])
        x = x + (update if modulation is None else modulation.attention_gate * update)
        normed = self.ffn_norm(x)
        if modulation is not None:
            normed = normed * (1 + modulation.feed_forward_scale) + modulation.feed_forward_shift
        update = dropout(self.feed_forward(normed), self.feed_forward_dropout, keys[1])
        return x + (update if modulation is None else modulation.feed_forward_gate * update)


class Stack(NamedTuple):
    """Layers of one kind with their weights stacked: every leaf of `state` has a leading axis L."""

    graph: Any
    state: Any
    layers: int

    def layer(self, state: Any) -> Block:
        """The block that holds one layer's weights."""
        return nnx.merge(self.graph, state)


def stack_blocks(blocks: Sequence[Block], stacked: bool = False) -> Stack:
    """Stack the weights of blocks that have one structure; `stacked` ones hold those of all layers already."""
    graph, state = nnx.split(blocks[0])
    if stacked:
        return Stack(graph, state, len(blocks))
    states = [nnx.state(block) for block in blocks]
    return Stack(graph, jax.tree.map(lambda *leaves: jnp.stack(leaves), *states), len(blocks))


def run(
    stack: Stack,
    x: Float[Array, "B T C"],
    rows: Rotary,
    *,
    condition: Float[Array, "B C"] | None = None,
    key: PRNGKeyArray | None = None,
    remat: bool = False,
) -> Float[Array, "B T C"]:
    """All layers on whole sequences, causally. A key switches dropout on."""

    def layer(x: Array, state: Any, key: PRNGKeyArray | None) -> Array:
        block, x = stack.layer(state), constrain(x, SAMPLES)
        modulation = None if condition is None else block.modulation(condition)
        mixed = attend(*block.attention.project(block.before_attention(x, modulation), rows))
        return block.after_attention(x, mixed, modulation, key)

    layer = jax.checkpoint(layer) if remat else layer
    keys = None if key is None else jax.random.split(key, stack.layers)
    return lax.scan(lambda x, xs: (layer(x, *xs), None), x, (stack.state, keys))[0]


def run_cached(
    blocks: Sequence[Block],
    x: Float[Array, "B 1 C"],
    rows: Rotary,
    caches: Sequence[KeysValues],
    position: int | Int[Array, ""],
    modulations: Sequence[Modulation] | None = None,
) -> tuple[Float[Array, "B 1 C"], tuple[KeysValues, ...]]:
    """All layers on one new position, whose keys and values enter the caches.

    Args:
        blocks: the layers.
        x: features of the new position.
        rows: its row of the rotary table.
        caches: keys and values of the positions before it, per layer.
        position: its number, for which the caches have room. All of a cache is read, so room is better made late.
        modulations: per layer.
    """
    updated = []
    for number, (block, cache) in enumerate(zip(blocks, caches, strict=True)):
        modulation = None if modulations is None else modulations[number]
        q, *new = block.attention.project(block.before_attention(x, modulation), rows)
        cache = KeysValues(
            *(
                lax.dynamic_update_slice(whole, part.swapaxes(1, 2).astype(whole.dtype), (0, 0, position, 0))
                for whole, part in zip(cache, new, strict=True)
            )
        )
        updated.append(cache)
        x = block.after_attention(x, attend_cached(q, cache, position), modulation)
    return x, tuple(updated)


def attend_cached(
    q: Float[Array, "B 1 N H"], cache: KeysValues, position: int | Int[Array, ""]
) -> Float[Array, "B 1 N H"]:
    """Attention of one position to itself and those before it."""
    keys, values = (whole.astype(q.dtype) for whole in cache)
    wide = jnp.promote_types(q.dtype, jnp.float32)
    logits = jnp.einsum("btnh,bnsh->bnts", q, keys, preferred_element_type=wide) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(jnp.where(jnp.arange(keys.shape[2]) <= position, logits, -jnp.inf))
    return jnp.einsum("bnts,bnsh->btnh", weights.astype(q.dtype), values)


def empty_caches(
    config: TransformerConfig, layers: int, batch: int, positions: int, dtype: Any
) -> tuple[KeysValues, ...]:
    """Room for all positions of all layers."""
    shape = (batch, config.heads, positions, config.head_width)
    return tuple(KeysValues(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(layers))


def enlarged(caches: Sequence[KeysValues], positions: int) -> tuple[KeysValues, ...]:
    """Return the caches with room for a given number of positions."""

    def enlarge(whole: Array) -> Array:
        return jnp.pad(whole, ((0, 0), (0, 0), (0, positions - whole.shape[2]), (0, 0)))

    return tuple(KeysValues(*map(enlarge, cache)) for cache in caches)
