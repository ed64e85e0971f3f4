"""The two class-conditional generators: one transformer core, two ways of predicting a position's (sub-)tokens.

`Factorized` (Open-MAGVIT2; Luo et al., 2024) predicts two sub-tokens per position, the second from the first through a
short transformer of its own. `Adaptive` (IBQ; Shi et al., 2024) predicts one token, its blocks modulated by the class.
Shape legend: B batch, T tokens, S sub-tokens per position, C width, V codes of one sub-token, L layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from voken_common.config.schema.transformer import TransformerConfig
from voken_jax.models.layers import Policy, at_least_float32
from voken_jax.models.transformer import (
    Block,
    KeysValues,
    Modulation,
    RMSNorm,
    Rotary,
    dropout,
    empty_caches,
    linear,
    rotary_table,
    run,
    run_cached,
    stack_blocks,
)
from voken_jax.parallel.sharding import SAMPLES, constrain

Logits = tuple[Float[Array, "B T V"], ...]
Choose = Callable[[Float[Array, "B V"], int], Int[Array, "B"]]
"""(logits of one sub-token, its number) -> chosen codes."""
Caches = tuple[KeysValues, ...]
"""One per layer that sees the whole sequence."""


class Embedding(nnx.Module):
    """A table of vectors, normal with deviation 0.02."""

    def __init__(self, rows: int, width: int, *, policy: Policy, rngs: Any):
        self.embedding = nnx.Param(0.02 * jax.random.normal(rngs.params(), (rows, width), policy.param_dtype))
        self.dtype = policy.compute_dtype

    def __call__(self, ids: Int[Array, "*n"]) -> Float[Array, "*n C"]:
        """Rows by number."""
        return jnp.take(self.embedding[...], ids, axis=0).astype(self.dtype)


class LabelEmbedding(nnx.Module):
    """Classes, and a last row that stands for none."""

    def __init__(self, config: TransformerConfig, *, policy: Policy, rngs: Any):
        self.classes, self.rate = config.classes, config.label_dropout
        self.embedding_table = Embedding(config.classes + 1, config.width, policy=policy, rngs=rngs)

    def __call__(self, labels: Int[Array, "B"], key: PRNGKeyArray | None = None) -> Float[Array, "B C"]:
        """A key drops labels at the configured rate; `classes` itself is the dropped label."""
        if key is not None and self.rate > 0:
            dropped = jax.random.bernoulli(key, self.rate, labels.shape)
            labels = jnp.where(dropped, self.classes, labels)
        return self.embedding_table(labels)


class ModulatedNorm(nnx.Module):
    """RMS norm whose scale and shift come from the class."""

    def __init__(self, config: TransformerConfig, *, policy: Policy, rngs: Any):
        self.rmsnorm = RMSNorm(config.width, policy=policy)
        self.ada_lin = nnx.Dict({"1": linear(config.width, 2 * config.width, policy=policy, rngs=rngs, bias=True)})
        kernel = self.ada_lin["1"].kernel
        kernel.set_value(kernel[...] * 0.5)

    def parts(self, condition: Float[Array, "B C"]) -> tuple[Array, Array]:
        """Scale and shift, each (B, 1, C)."""
        parts = constrain(self.ada_lin["1"](constrain(jax.nn.silu(condition), SAMPLES)), SAMPLES)
        scale, shift = jnp.split(parts[:, None], 2, axis=-1)
        return scale, shift

    def __call__(self, x: Float[Array, "B T C"], parts: tuple[Array, Array]) -> Float[Array, "B T C"]:
        """Normalised, scaled and shifted."""
        scale, shift = parts
        return self.rmsnorm(x) * (1 + scale) + shift


def head(width: int, codes: int, *, policy: Policy, rngs: Any) -> nnx.Linear:
    """The last layer, zero at the start."""
    return nnx.Linear(
        width,
        codes,
        use_bias=False,
        dtype=policy.compute_dtype,
        param_dtype=policy.param_dtype,
        kernel_init=nnx.initializers.zeros_init(),
        rngs=rngs,
    )


class Prepared(NamedTuple):
    """Values computed once per sample, before its positions are generated."""

    condition: Float[Array, "B C"]
    modulations: tuple[Modulation, ...] | None
    head_parts: tuple[Array, Array] | None
    table: Rotary


class _Generator(nnx.Module):
    """Common part of both generators: embeddings, the sequence, and its positions."""

    def __init__(self, config: TransformerConfig, *, policy: Policy, rngs: Any):
        self.config, self.policy = config, policy
        self.stacked = False
        self.class_emb = LabelEmbedding(config, policy=policy, rngs=rngs)

    def _blocks(self, layers: int, rngs: Any, *, adaptive: bool = False) -> nnx.List:
        return nnx.List([Block(self.config, adaptive=adaptive, policy=self.policy, rngs=rngs) for _ in range(layers)])

    def embed(self, tokens: Int[Array, "B T S"]) -> Float[Array, "B T C"]:
        """Features of whole tokens."""
        raise NotImplementedError

    def table(self) -> Rotary:
        """The rotary table, in float32 at least."""
        return rotary_table(self.config, jnp.promote_types(self.policy.compute_dtype, jnp.float32))

    def caches(self, batch: int, positions: int, dtype: Any = None) -> Caches:
        """Empty caches of the layers that see the whole sequence, in the compute dtype unless another is said."""
        return empty_caches(self.config, self.config.layers, batch, positions, dtype or self.policy.compute_dtype)

    def sequence(
        self, tokens: Int[Array, "B T S"], condition: Float[Array, "B C"], key: PRNGKeyArray | None
    ) -> Float[Array, "B T C"]:
        """The class, then all tokens but the last."""
        embedded = constrain(self.embed(tokens[:, :-1]), SAMPLES)
        x = jnp.concatenate([constrain(condition, SAMPLES)[:, None], embedded], axis=1)
        return dropout(x, self.config.token_dropout, key)


def _keys(key: PRNGKeyArray | None, count: int) -> tuple[PRNGKeyArray | None, ...]:
    return (None,) * count if key is None else tuple(jax.random.split(key, count))


class Factorized(_Generator):
    """Two sub-tokens per position."""

    def __init__(self, config: TransformerConfig, *, policy: Policy, rngs: Any):
        super().__init__(config, policy=policy, rngs=rngs)
        first, second = config.vocabularies
        self.pre_emb = Embedding(first, config.width, policy=policy, rngs=rngs)
        self.post_emb = Embedding(second, config.width, policy=policy, rngs=rngs)
        self.spatial_blocks = self._blocks(config.layers, rngs)
        self.factorized_blocks = self._blocks(config.factorized_layers, rngs)
        self.norm = RMSNorm(config.width, policy=policy)
        self.head = nnx.List([head(config.width, codes, policy=policy, rngs=rngs) for codes in config.vocabularies])

    def embed(self, tokens: Int[Array, "B T S"]) -> Float[Array, "B T C"]:
        """Sum of both sub-tokens' vectors."""
        return self.pre_emb(tokens[..., 0]) + self.post_emb(tokens[..., 1])

    def __call__(self, tokens: Int[Array, "B T 2"], labels: Int[Array, "B"], key: PRNGKeyArray | None = None) -> Logits:
        """Logits of both sub-tokens of every position, in float32 at least. A key switches all dropout on."""
        label_key, token_key, spatial_key, factorized_key = _keys(key, 4)
        table, remat = self.table(), self.policy.remat
        batch, length, _ = tokens.shape
        x = self.sequence(tokens, self.class_emb(labels, label_key), token_key)
        rows = Rotary(*(part[:length] for part in table))
        hidden = run(stack_blocks(self.spatial_blocks, self.stacked), x, rows, key=spatial_key, remat=remat)
        pairs = jnp.stack([hidden, self.pre_emb(tokens[..., 0])], axis=2).reshape(batch * length, 2, -1)
        rows = Rotary(*(part[:2] for part in table))
        pairs = run(stack_blocks(self.factorized_blocks, self.stacked), pairs, rows, key=factorized_key, remat=remat)
        pairs = self.norm(pairs).reshape(batch, length, 2, -1)
        return tuple(at_least_float32(self.head[i](pairs[:, :, i])) for i in range(2))

    def prepare(self, labels: Int[Array, "B"]) -> Prepared:
        """Look the classes up."""
        return Prepared(self.class_emb(labels), None, None, self.table())

    def position(
        self,
        prepared: Prepared,
        x: Float[Array, "B 1 C"],
        caches: Caches,
        number: Int[Array, ""],
        choose: Choose,
    ) -> tuple[Int[Array, "B 2"], Caches]:
        """Generate the sub-tokens of one position, see `Adaptive.position`."""
        table = prepared.table
        hidden, caches = run_cached(self.spatial_blocks, x, _row(table, number), caches, number)
        inner = empty_caches(self.config, self.config.factorized_layers, x.shape[0], 2, caches[0].keys.dtype)
        chosen: list[Array] = []
        for i in range(2):
            step = hidden if i == 0 else self.pre_emb(chosen[0])[:, None]
            out, inner = run_cached(self.factorized_blocks, step, _row(table, i), inner, i)
            chosen.append(choose(at_least_float32(self.head[i](self.norm(out))[:, 0]), i))
        return jnp.stack(chosen, axis=-1), caches


class Adaptive(_Generator):
    """One token per position, every block modulated by the class."""

    def __init__(self, config: TransformerConfig, *, policy: Policy, rngs: Any):
        super().__init__(config, policy=policy, rngs=rngs)
        (codes,) = config.vocabularies
        self.tok_emb = Embedding(codes, config.width, policy=policy, rngs=rngs)
        self.blocks = self._blocks(config.layers, rngs, adaptive=True)
        self.head_nm = ModulatedNorm(config, policy=policy, rngs=rngs)
        self.head = head(config.width, codes, policy=policy, rngs=rngs)

    def embed(self, tokens: Int[Array, "B T S"]) -> Float[Array, "B T C"]:
        """The tokens' vectors."""
        return self.tok_emb(tokens[..., 0])

    def __call__(self, tokens: Int[Array, "B T 1"], labels: Int[Array, "B"], key: PRNGKeyArray | None = None) -> Logits:
        """Logits of every position, in float32 at least. A key switches all dropout on."""
        label_key, token_key, block_key = _keys(key, 3)
        condition = self.class_emb(labels, label_key)
        x = self.sequence(tokens, condition, token_key)
        rows = Rotary(*(part[: x.shape[1]] for part in self.table()))
        stack = stack_blocks(self.blocks, self.stacked)
        x = run(stack, x, rows, condition=condition, key=block_key, remat=self.policy.remat)
        return (at_least_float32(self.head(self.head_nm(x, self.head_nm.parts(condition)))),)

    def prepare(self, labels: Int[Array, "B"]) -> Prepared:
        """Compute once what the class does to every layer."""
        condition = self.class_emb(labels)
        modulations = tuple(block.modulation(condition) for block in self.blocks)
        return Prepared(condition, modulations, self.head_nm.parts(condition), self.table())

    def position(
        self,
        prepared: Prepared,
        x: Float[Array, "B 1 C"],
        caches: Caches,
        number: Int[Array, ""],
        choose: Choose,
    ) -> tuple[Int[Array, "B 1"], Caches]:
        """Generate the token of one position from the features of the one before it.

        Args:
            prepared: of `prepare`.
            x: the class at position 0, else what the token before it is embedded to.
            caches: keys and values of the positions before it, per layer.
            number: of the position.
            choose: draws codes from logits.
        """
        assert prepared.head_parts is not None
        row = _row(prepared.table, number)
        hidden, caches = run_cached(self.blocks, x, row, caches, number, prepared.modulations)
        logits = self.head(self.head_nm(hidden, prepared.head_parts))
        return choose(at_least_float32(logits[:, 0]), 0)[:, None], caches


def build_generator(config: TransformerConfig, *, policy: Policy, rngs: Any) -> Factorized | Adaptive:
    """The generator of a configuration."""
    kind = Factorized if config.network == "factorized" else Adaptive
    return kind(config, policy=policy, rngs=rngs)


def _row(table: Rotary, number: int | Int[Array, ""]) -> Rotary:
    return Rotary(*(jax.lax.dynamic_slice_in_dim(part, number, 1) for part in table))
