"""One optimizer step of a generator: cross entropy of every (sub-)token, AdamW with scheduled rate and decay.

`GeneratorStep` is called as `(state, batch) -> (state, metrics)` and runs one jitted program with donated state. A step
whose loss or gradient norm is not finite leaves the state as it was and says so in `state.failure`.

Shape legend: B batch, T tokens, S sub-tokens per position, V codes of one sub-token.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt

from voken_common.config.schema.generator import GeneratorConfig
from voken_jax.models.functional import Network, Weights
from voken_jax.models.stacked import bind_stacked, stack_layers
from voken_jax.optimization.finite import Metrics, keep_if_finite
from voken_jax.parallel.sharding import batch_sharding, replicated, with_shardings

Batch = dict[str, Array]
"""`tokens` (B, T, S) and `labels` (B,), both integers."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GeneratorState:
    """Everything that changes between two steps.

    Attributes:
        step: optimizer steps taken.
        rng: raw key data; each step folds its number into it.
        generator: parameters by dotted name; in a running step those of all layers are one array
            (`voken_jax.models.stacked`), and so are their moments and averages.
        optimizer: optax state.
        generator_ema: exponential averages of the parameters; empty where none are kept.
        failure: 0, or a bit per metric (by sorted name) that was not finite.
    """

    step: Int[Array, ""]
    rng: UInt[Array, "..."]
    generator: Weights
    optimizer: optax.OptState
    generator_ema: Weights
    failure: Int[Array, ""]


def init_generator_state(
    config: GeneratorConfig, network: Network, optimizer: optax.GradientTransformation
) -> GeneratorState:
    """A fresh state; traceable, so that large models can be born sharded."""
    rng, key = jax.random.split(jax.random.key(config.seed))
    weights = stack_layers(network.init(key)[0])
    return GeneratorState(
        step=jnp.zeros((), jnp.int32),
        rng=jax.random.key_data(rng),
        generator=weights,
        optimizer=optimizer.init(weights),
        generator_ema={} if config.optimizer.ema_decay is None else jax.tree.map(jnp.copy, weights),
        failure=jnp.zeros((), jnp.int32),
    )


def abstract_generator_state(
    config: GeneratorConfig, network: Network, optimizer: optax.GradientTransformation, mesh: Mesh
) -> GeneratorState:
    """Shapes, dtypes and shardings of the state, as ShapeDtypeStructs."""
    shapes = jax.eval_shape(lambda: init_generator_state(config, network, optimizer))
    return with_shardings(shapes, mesh, config)


def create_generator_state(
    config: GeneratorConfig, network: Network, optimizer: optax.GradientTransformation, mesh: Mesh
) -> GeneratorState:
    """A fresh state, born sharded: no host ever holds the whole of a large model."""
    abstract = abstract_generator_state(config, network, optimizer, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(lambda: init_generator_state(config, network, optimizer), out_shardings=shardings)()


def token_losses(
    logits: tuple[Float[Array, "B T V"], ...], tokens: Int[Array, "B T S"]
) -> tuple[Float[Array, ""], Metrics]:
    """Sum over sub-tokens of the mean cross entropy in nats, and loss and accuracy of each."""
    total = jnp.zeros((), logits[0].dtype)
    metrics: Metrics = {}
    for number, part in enumerate(logits):
        target = tokens[..., number]
        loss = optax.softmax_cross_entropy_with_integer_labels(part, target).mean()
        suffix = f"_{number}" if len(logits) > 1 else ""
        metrics[f"loss{suffix}"] = loss
        metrics[f"accuracy{suffix}"] = (part.argmax(axis=-1) == target).mean()
        total = total + loss
    return total, {"loss": total, **metrics}


class GeneratorStepped(NamedTuple):
    """Result of one step: the state after it (unchanged if a metric was not finite) and metrics."""

    state: GeneratorState
    metrics: Metrics


class GeneratorStep:
    """The compiled training step of one configuration on one mesh.

    Args:
        config: the run.
        network: the generator as a function of weights.
        optimizer: of `voken_jax.optimization.optim.build_generator_optimizer`.
        mesh: axes (data, fsdp, model).
        shardings: of the state, as a pytree of NamedSharding.
    """

    def __init__(
        self,
        config: GeneratorConfig,
        network: Network,
        optimizer: optax.GradientTransformation,
        mesh: Mesh,
        shardings: GeneratorState,
    ):
        self.config, self.network, self.optimizer, self.mesh = config, network, optimizer, mesh
        results: Any = (shardings, replicated(mesh))
        self.program = jax.jit(
            self._update,
            donate_argnums=0,
            in_shardings=(shardings, batch_sharding(mesh)),
            out_shardings=GeneratorStepped(*results),
        )

    def __call__(self, state: GeneratorState, batch: Batch) -> GeneratorStepped:
        """Make one step; the state passed in is consumed. Metrics stay on the device."""
        return self.program(state, batch)

    def _update(self, state: GeneratorState, batch: Batch) -> GeneratorStepped:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        gradients, metrics = self._gradients(state.generator, batch, key)
        metrics["grad_norm"] = optax.tree.norm(gradients)
        updates, optimizer = self.optimizer.update(gradients, state.optimizer, state.generator)
        weights = optax.apply_updates(state.generator, updates)
        decay, averages = self.config.optimizer.ema_decay, state.generator_ema
        if decay is not None:
            averages = jax.tree.map(lambda a, w: a - (1 - decay) * (a - w), averages, weights)
        new = GeneratorState(state.step + 1, state.rng, weights, optimizer, averages, state.failure)
        return GeneratorStepped(keep_if_finite(state, new, metrics), metrics)

    def _gradients(self, weights: Weights, batch: Batch, key: Any) -> tuple[Weights, Metrics]:
        """Means over micro-batches, each of which takes its share from every device's samples."""
        parts = self.config.optimizer.gradient_accumulation

        def loss(weights: Weights, batch: Batch, key: Any) -> tuple[Array, Metrics]:
            with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
                logits = bind_stacked(self.network, weights)(batch["tokens"], batch["labels"], key)
            return token_losses(logits, batch["tokens"])

        if parts == 1:
            return jax.grad(loss, has_aux=True)(weights, batch, key)
        micro = jax.tree.map(lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), batch)

        def body(total: Any, xs: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, jax.grad(loss, has_aux=True)(weights, *xs)), None

        keys = jax.random.split(key, parts)
        first = jax.tree.map(lambda x: x[0], (micro, keys))
        shapes = jax.eval_shape(lambda *xs: jax.grad(loss, has_aux=True)(weights, *xs), *first)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        total, _ = jax.lax.scan(body, zeros, (micro, keys))
        return jax.tree.map(lambda x: x / parts, total)
