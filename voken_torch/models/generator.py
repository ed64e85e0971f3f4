"""The two class-conditional generators: one transformer core, two ways of predicting a position's (sub-)tokens.

`Factorized` (Open-MAGVIT2; Luo et al., 2024) predicts two sub-tokens per position, the second from the first through a
short transformer of its own. `Adaptive` (IBQ; Shi et al., 2024) predicts one token, its blocks modulated by the class.
Shape legend: B batch, T tokens, S sub-tokens per position, C width, V codes of one sub-token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from voken_common.config.schema.transformer import TransformerConfig
from voken_torch.device.kernels import PLAIN, Kernels, at_least_float32
from voken_torch.models.transformer import (
    DEVIATION,
    Block,
    KeysValues,
    Linear,
    Modulation,
    Position,
    RMSNorm,
    Rotary,
    compute_with,
    empty_caches,
    linear,
    rotary_table,
    run,
    run_cached,
)

Logits = tuple[Float[Tensor, "B T V"], ...]
Choose = Callable[[Float[Tensor, "B V"], int], Int[Tensor, " B"]]
"""(logits of one sub-token, its number) -> chosen codes."""


def embedding(rows: int, width: int) -> nn.Embedding:
    """A table of vectors, normal with deviation 0.02."""
    table = nn.Embedding(rows, width)
    nn.init.normal_(table.weight, std=DEVIATION)
    return table


class LabelEmbedding(nn.Module):
    """Classes, and a last row that stands for none."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.classes, self.rate = config.classes, config.label_dropout
        self.embedding_table = embedding(config.classes + 1, config.width)

    def forward(self, labels: Int[Tensor, " B"], drop: bool = False) -> Float[Tensor, "B C"]:
        """`drop` drops labels at the configured rate; `classes` itself is the dropped label."""
        if drop and self.rate > 0:
            dropped = torch.rand(labels.shape, device=labels.device) < self.rate
            labels = torch.where(dropped, self.classes, labels)
        return self.embedding_table(labels)


class ModulatedNorm(nn.Module):
    """RMS norm whose scale and shift come from the class."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.rmsnorm = RMSNorm(config.width)
        modulate = linear(config.width, 2 * config.width, bias=True)
        self.ada_lin = nn.Sequential(nn.SiLU(), modulate)
        with torch.no_grad():
            modulate.weight.mul_(0.5)

    def parts(self, condition: Float[Tensor, "B C"]) -> tuple[Tensor, Tensor]:
        """Scale and shift, each (B, 1, C)."""
        scale, shift = self.ada_lin(condition)[:, None].chunk(2, dim=-1)
        return scale, shift

    def forward(self, x: Float[Tensor, "B T C"], parts: tuple[Tensor, Tensor]) -> Float[Tensor, "B T C"]:
        """Normalised, scaled and shifted."""
        scale, shift = parts
        return self.rmsnorm(x) * (1 + scale) + shift


def head(width: int, codes: int) -> nn.Linear:
    """The last layer, zero at the start."""
    layer = Linear(width, codes, bias=False)
    nn.init.zeros_(layer.weight)
    return layer


class Prepared(NamedTuple):
    """Values computed once per sample, before its positions are generated."""

    condition: Float[Tensor, "B C"]
    modulations: list[Modulation] | None
    head_parts: tuple[Tensor, Tensor] | None
    table: Rotary


class _Generator(nn.Module):
    """Common part of both generators: embeddings, the sequence, and its positions."""

    def __init__(self, config: TransformerConfig, remat: bool):
        super().__init__()
        self.config, self.remat = config, remat
        self.class_emb = LabelEmbedding(config)

    def embed(self, tokens: Int[Tensor, "B T S"]) -> Float[Tensor, "B T C"]:
        """Features of whole tokens."""
        raise NotImplementedError

    def sequence(self, tokens: Int[Tensor, "B T S"], condition: Float[Tensor, "B C"]) -> Float[Tensor, "B T C"]:
        """The class, then all tokens but the last."""
        x = torch.cat([condition[:, None], self.embed(tokens[:, :-1])], dim=1)
        return F.dropout(x, self.config.token_dropout, self.training)

    def caches(self, batch: int, like: Tensor, dtype: torch.dtype | None = None) -> list[KeysValues]:
        """Empty caches of the layers that see the whole sequence."""
        return empty_caches(self.config, self.config.layers, batch, self.config.tokens, like, dtype)


class Factorized(_Generator):
    """Two sub-tokens per position."""

    def __init__(self, config: TransformerConfig, remat: bool = False):
        super().__init__(config, remat)
        first, second = config.vocabularies
        self.pre_emb, self.post_emb = embedding(first, config.width), embedding(second, config.width)
        self.spatial_blocks = nn.ModuleList([Block(config, adaptive=False) for _ in range(config.layers)])
        self.factorized_blocks = nn.ModuleList([Block(config, adaptive=False) for _ in range(config.factorized_layers)])
        self.norm = RMSNorm(config.width)
        self.head = nn.ModuleList([head(config.width, codes) for codes in config.vocabularies])

    def embed(self, tokens: Int[Tensor, "B T S"]) -> Float[Tensor, "B T C"]:
        """Sum of both sub-tokens' vectors."""
        return self.pre_emb(tokens[..., 0]) + self.post_emb(tokens[..., 1])

    def forward(self, tokens: Int[Tensor, "B T 2"], labels: Int[Tensor, " B"]) -> Logits:
        """Logits of both sub-tokens of every position, in float32 at least. Training mode switches dropout on."""
        x = self.sequence(tokens, self.class_emb(labels, self.training))
        batch, length, _ = x.shape
        table = rotary_table(self.config, x)
        hidden = run(self.spatial_blocks, x, table.rows(0, length), remat=self.remat)
        pairs = torch.stack([hidden, self.pre_emb(tokens[..., 0])], dim=2).flatten(0, 1)
        pairs = run(self.factorized_blocks, pairs, table.rows(0, 2), remat=self.remat)
        pairs = self.norm(pairs).unflatten(0, (batch, length))
        return tuple(at_least_float32(layer(pairs[:, :, i])) for i, layer in enumerate(self.head))

    def prepare(self, labels: Int[Tensor, " B"]) -> Prepared:
        """Look the classes up."""
        condition = self.class_emb(labels)
        return Prepared(condition, None, None, rotary_table(self.config, condition))

    def position(
        self, prepared: Prepared, x: Float[Tensor, "B 1 C"], caches: list[KeysValues], number: Position, choose: Choose
    ) -> Int[Tensor, "B 2"]:
        """Generate the sub-tokens of one position from the features of the one before it."""
        table = prepared.table
        hidden = run_cached(self.spatial_blocks, x, table.row(number), caches, number)
        inner = empty_caches(self.config, self.config.factorized_layers, x.shape[0], 2, hidden, caches[0].keys.dtype)
        chosen: list[Tensor] = []
        for i, layer in enumerate(self.head):
            step = hidden if i == 0 else self.pre_emb(chosen[0])[:, None]
            out = run_cached(self.factorized_blocks, step, table.row(i), inner, i)
            chosen.append(choose(at_least_float32(layer(self.norm(out))[:, 0]), i))
        return torch.stack(chosen, dim=-1)


class Adaptive(_Generator):
    """One token per position, every block modulated by the class."""

    def __init__(self, config: TransformerConfig, remat: bool = False):
        super().__init__(config, remat)
        (codes,) = config.vocabularies
        self.tok_emb = embedding(codes, config.width)
        self.blocks = nn.ModuleList([Block(config, adaptive=True) for _ in range(config.layers)])
        self.head_nm = ModulatedNorm(config)
        self.head = head(config.width, codes)

    def embed(self, tokens: Int[Tensor, "B T S"]) -> Float[Tensor, "B T C"]:
        """The tokens' vectors."""
        return self.tok_emb(tokens[..., 0])

    def forward(self, tokens: Int[Tensor, "B T 1"], labels: Int[Tensor, " B"]) -> Logits:
        """Logits of every position, in float32 at least. Training mode switches dropout on."""
        condition = self.class_emb(labels, self.training)
        x = self.sequence(tokens, condition)
        rows = rotary_table(self.config, x).rows(0, x.shape[1])
        x = run(self.blocks, x, rows, condition=condition, remat=self.remat)
        return (at_least_float32(self.head(self.head_nm(x, self.head_nm.parts(condition)))),)

    def prepare(self, labels: Int[Tensor, " B"]) -> Prepared:
        """Compute once what the class does to every layer."""
        condition = self.class_emb(labels)
        modulations = [block.modulation(condition) for block in self.blocks if isinstance(block, Block)]
        return Prepared(condition, modulations, self.head_nm.parts(condition), rotary_table(self.config, condition))

    def position(
        self, prepared: Prepared, x: Float[Tensor, "B 1 C"], caches: list[KeysValues], number: Position, choose: Choose
    ) -> Int[Tensor, "B 1"]:
        """Generate the token of one position from the features of the one before it."""
        assert prepared.head_parts is not None
        hidden = run_cached(self.blocks, x, prepared.table.row(number), caches, number, prepared.modulations)
        logits = self.head(self.head_nm(hidden, prepared.head_parts))
        return choose(at_least_float32(logits[:, 0]), 0)[:, None]


def build_generator(config: TransformerConfig, remat: bool = False, kernels: Kernels = PLAIN) -> Factorized | Adaptive:
    """The generator of a configuration; `kernels` are the plain ones or a device's own."""
    network = (Factorized if config.network == "factorized" else Adaptive)(config, remat)
    compute_with(network, kernels)
    return network
