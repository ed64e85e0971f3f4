"""TrainState: everything that changes between two steps of a tokenizer run, and how it is born; networks by name."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int, UInt

from voken_common.config.schema.generator import GeneratorConfig
from voken_common.config.schema.run import PrecisionConfig
from voken_common.config.schema.tokenizer import Config
from voken_jax.models.autoencoder import Autoencoder
from voken_jax.models.discriminator import build_discriminator
from voken_jax.models.functional import Network, Weights
from voken_jax.models.generator import build_generator
from voken_jax.models.layers import Policy
from voken_jax.parallel.sharding import with_shardings
from voken_jax.tokenizer.losses import LecamAverages


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Weights are flat dictionaries by dotted name.

    Attributes:
        step: optimizer steps taken.
        rng: raw key data; each step folds its number into it.
        generator: parameters of the autoencoder and its quantizer.
        discriminator: parameters of the discriminator.
        buffers: running statistics (and constants) of the discriminator.
        generator_optimizer, discriminator_optimizer: optax states.
        generator_ema, discriminator_ema: exponential averages of the parameters.
        lecam: averages of the logits, one entry per statistics scope: (1,) or (devices,).
        failure: 0, or a bit per metric (see `TokenizerStep.metric_names`) that was not finite; the state then stays
            as it was before the failing step.
    """

    step: Int[Array, ""]
    rng: UInt[Array, "..."]
    generator: Weights
    discriminator: Weights
    buffers: Weights
    generator_optimizer: optax.OptState
    discriminator_optimizer: optax.OptState
    generator_ema: Weights
    discriminator_ema: Weights
    lecam: LecamAverages
    failure: Int[Array, ""]

    def replace(self, **changes: Any) -> TrainState:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


@dataclasses.dataclass(frozen=True)
class Players:
    """The two networks of a configuration, as functions of weights."""

    autoencoder: Network
    discriminator: Network


def policy_of(precision: PrecisionConfig) -> Policy:
    """Number formats as dtypes.

    Raises:
        ValueError: float64 was asked for while JAX computes in 32 bits.
    """
    if "float64" in (precision.param_dtype, precision.compute_dtype) and not jax.config.read("jax_enable_x64"):
        raise ValueError("precision asks for float64 but JAX computes in 32 bits: set the environment JAX_ENABLE_X64=1")
    return Policy(jnp.dtype(precision.param_dtype), jnp.dtype(precision.compute_dtype), precision.remat)


def build_autoencoder(config: Config) -> Network:
    """The autoencoder of a configuration; nothing is allocated."""
    policy = policy_of(config.precision)
    return Network(lambda rngs: Autoencoder(config.model, config.quantizer, policy=policy, rngs=rngs))


def build_generator_network(config: GeneratorConfig) -> Network:
    """The transformer of a generator's configuration; nothing is allocated."""
    policy = policy_of(config.precision)
    return Network(lambda rngs: build_generator(config.model, policy=policy, rngs=rngs))


def build_players(config: Config) -> Players:
    """Both networks of a configuration; nothing is allocated."""
    policy, channels = policy_of(config.precision), config.model.image_channels
    discriminator = Network(lambda rngs: build_discriminator(config.discriminator, channels, policy=policy, rngs=rngs))
    return Players(build_autoencoder(config), discriminator)


def init_state(
    config: Config, players: Players, optimizer: optax.GradientTransformation, lecam_entries: int = 1
) -> TrainState:
    """A fresh state; traceable."""
    rng, generator_key, discriminator_key = jax.random.split(jax.random.key(config.seed), 3)
    generator, _ = players.autoencoder.init(generator_key)
    discriminator, buffers = players.discriminator.init(discriminator_key)
    zeros = jnp.zeros((lecam_entries,), jnp.dtype(config.precision.param_dtype))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        rng=jax.random.key_data(rng),
        generator=generator,
        discriminator=discriminator,
        buffers=buffers,
        generator_optimizer=optimizer.init(generator),
        discriminator_optimizer=optimizer.init(discriminator),
        generator_ema=jax.tree.map(jnp.copy, generator),
        discriminator_ema=jax.tree.map(jnp.copy, discriminator),
        lecam=LecamAverages(real=zeros, fake=zeros),
        failure=jnp.zeros((), jnp.int32),
    )


def lecam_entries(config: Config, mesh: Mesh) -> int:
    """One average per device where statistics are per device, else one."""
    return mesh.shape["data"] if config.statistics_scope == "per_device" else 1


def abstract_state(config: Config, players: Players, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state, as ShapeDtypeStructs."""
    shapes = jax.eval_shape(lambda: init_state(config, players, optimizer, lecam_entries(config, mesh)))
    return with_shardings(shapes, mesh, config)


def create_state(config: Config, players: Players, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """A fresh state, born sharded: no host ever holds the whole of a large model."""
    abstract = abstract_state(config, players, optimizer, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    init = jax.jit(lambda: init_state(config, players, optimizer, lecam_entries(config, mesh)), out_shardings=shardings)
    return init()
