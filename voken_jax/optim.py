"""Optimizers of the two players, from the configuration."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from voken_common.schedules import Schedule
from voken_common.schema import OptimizerConfig


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
