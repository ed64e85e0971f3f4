"""`--verify` of a generator: do two checkpoints give the same logits, in both frameworks?

Shape legend: B samples, T positions, S sub-tokens per position, V codes of one sub-token.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from voken_common.checkpoints.conversion.contents import Arrays
from voken_common.checkpoints.weight_names import to_jax
from voken_common.config.schema.generator import GeneratorConfig
from voken_jax.conversion import torch_bridge
from voken_jax.conversion.verify import Comparison
from voken_jax.tokenizer.state import build_generator_network

SAMPLES, POSITIONS, SEED = 2, 32, 0
LOGIT_NOISE = 1e-3
"""Relative to the largest logit: what two float32 implementations of a deep network may differ by."""

Logits = list[Float[np.ndarray, "B T V"]]


def compare_generators(config: GeneratorConfig, source: Arrays, target: Arrays) -> list[Comparison]:
    """Logits and most likely codes of seeded tokens with both sets of weights (torch names), in JAX and, if installed,
    in PyTorch. Everything is computed in the precision of the parameters, since lower ones hide what is compared.
    """
    precision = config.precision.model_copy(update={"compute_dtype": config.precision.param_dtype, "remat": False})
    config = config.model_copy(update={"precision": precision})
    tokens, labels = _inputs(config)
    with jax.enable_x64(precision.param_dtype == "float64"):
        network = build_generator_network(config)
        program = jax.jit(lambda weights: network.bind(weights)(tokens, labels))

        def in_jax(weights: Arrays) -> Logits:
            placed: Any = to_jax(weights)
            return [np.asarray(part) for part in program(placed)]

        expected, found = in_jax(source), {"target in JAX": in_jax(target)}
    if torch_bridge.is_installed():
        for name, weights in (("source", source), ("target", target)):
            found[f"{name} in PyTorch"] = torch_bridge.logits(config, weights, tokens, labels)
    return [_comparison(what, expected, logits) for what, logits in found.items()]


def _inputs(config: GeneratorConfig) -> tuple[Int[np.ndarray, "B T S"], Int[np.ndarray, " B"]]:
    rng, positions = np.random.default_rng(SEED), min(POSITIONS, config.model.tokens)
    vocabularies = config.model.vocabularies
    tokens = rng.integers(0, vocabularies, (SAMPLES, positions, len(vocabularies))).astype(np.int32)
    return tokens, rng.integers(0, config.model.classes, SAMPLES).astype(np.int32)


def _comparison(what: str, expected: Logits, found: Logits) -> Comparison:
    equal = near = total = 0
    difference = 0.0
    for ours, theirs in zip(expected, found, strict=True):
        largest = max(float(np.abs(ours).max()), 1e-30)
        ids, others = ours.argmax(-1), theirs.argmax(-1)
        gap = ours.max(-1) - np.take_along_axis(ours, others[..., None], -1)[..., 0]
        equal += int((ids == others).sum())
        near += int(((ids != others) & (gap <= LOGIT_NOISE * largest)).sum())
        total += ids.size
        difference = max(difference, float(np.abs(ours - theirs).max()) / largest)
    return Comparison(what, equal, near, total, difference, of="logits, relative to the largest")
