"""Optimizers of a tokenizer's two players and of a generator, from the configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from voken_common.config.schedules import Schedule, scheduled_weight_decay
from voken_common.config.schema.generator import GeneratorOptimizerConfig
from voken_common.config.schema.run import OptimizerConfig


def build_optimizer(config: OptimizerConfig, schedule: Schedule) -> optax.GradientTransformation:
    """Adam (decoupled weight decay if any) behind an optional clip of the global norm.

    The learning rate at the n-th update (0-based) is `learning_rate * schedule(n)`.
    """
    parts = []
    if config.gradient_clip is not None:
        parts.append(optax.clip_by_global_norm(config.gradient_clip))
    parts.append(optax.scale_by_adam(b1=config.betas[0], b2=config.betas[1], eps=config.epsilon))
    if config.weight_decay:
        parts.append(optax.add_decayed_weights(config.weight_decay))
    parts.append(optax.scale_by_learning_rate(lambda count: config.learning_rate * schedule(count, jnp)))
    return optax.chain(*parts)


class DecayState(NamedTuple):
    """Updates so far."""

    updates: Int[Array, ""]


def scheduled_decay(decay: Callable[[Array], Array], only_matrices: bool) -> optax.GradientTransformation:
    """Add decay(n) times the parameters to the n-th update (0-based).

    Args:
        decay: its value over the updates.
        only_matrices: spare tensors of one dimension, also where those of all layers are one array (`*` in the name).
    """

    def init(_: Any) -> DecayState:
        return DecayState(jnp.zeros((), jnp.int32))

    def update(updates: Any, state: DecayState, params: Any = None) -> tuple[Any, DecayState]:
        factor = decay(state.updates)

        def add(path: tuple[Any, ...], update: Array, weight: Array) -> Array:
            axes = weight.ndim - ("*" in jax.tree_util.keystr(path))
            return update if only_matrices and axes < 2 else update + factor.astype(weight.dtype) * weight

        return jax.tree_util.tree_map_with_path(add, updates, params), DecayState(state.updates + 1)

    return optax.GradientTransformation(init, update)


def build_generator_optimizer(
    config: GeneratorOptimizerConfig, schedule: Schedule, total_steps: int
) -> optax.GradientTransformation:
    """AdamW with both schedules behind an optional clip of the global norm.

    Learning rate and weight decay at the n-th update (0-based) are `learning_rate * schedule(n)` and
    `scheduled_weight_decay(n)`.
    """
    parts = [] if config.gradient_clip is None else [optax.clip_by_global_norm(config.gradient_clip)]
    parts += [
        optax.scale_by_adam(b1=config.betas[0], b2=config.betas[1], eps=config.epsilon),
        scheduled_decay(lambda n: scheduled_weight_decay(config, n, total_steps, jnp), not config.decay_all),
        optax.scale_by_learning_rate(lambda count: config.learning_rate * schedule(count, jnp)),
    ]
    return optax.chain(*parts)
