"""The networks that metrics need, in JAX: compiled once per shape, spread over this process's devices."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Num

from voken_common.checkpoints import weight_names as names
from voken_common.checkpoints.lpips_weights import Net, lpips_weights
from voken_common.config.schema.run import MeshConfig
from voken_common.evaluation.engine import Features, MetricWeights
from voken_common.metrics.resize import Resize
from voken_jax.models.functional import Network
from voken_jax.models.layers import Policy
from voken_jax.models.lpips import LPIPS
from voken_jax.models.metrics.feature_network import Weights, place_weights
from voken_jax.models.metrics.i3d import i3d_logits
from voken_jax.models.metrics.inception import inception_features
from voken_jax.parallel.sharding import batch_sharding, make_mesh, replicated


class Engine:
    """See `voken_common.evaluation.engine.Engine`.

    Args:
        weights: where the networks' weights come from.
    """

    framework = f"jax {jax.__version__}"

    def __init__(self, weights: MetricWeights):
        self.weights = weights
        self._mesh = make_mesh(MeshConfig(), jax.local_devices())
        self._inception = jax.jit(inception_features, static_argnums=2)
        self._i3d = jax.jit(i3d_logits)

    def inception(self, images: Num[np.ndarray, "B H W 3"], resize: Resize) -> Features:
        """Features of images, uint8 or in [-1, 1]."""
        found = self._inception(*self._placed(self._inception_weights, images), resize)
        return Features(*(np.asarray(part) for part in found))

    def lpips(
        self, net: Net, first: Float[np.ndarray, "B H W 3"], second: Float[np.ndarray, "B H W 3"]
    ) -> Float[np.ndarray, " B"]:
        """Distances of pairs in [-1, 1]."""
        program, weights = self._lpips(net)
        return np.asarray(program(*self._placed(weights, first, second)))

    def video(self, clips: Float[np.ndarray, "B T H W 3"]) -> Float[np.ndarray, "B 400"]:
        """I3D logits of clips in [-1, 1]."""
        return np.asarray(self._i3d(*self._placed(self._i3d_weights, clips)))

    @functools.cached_property
    def _inception_weights(self) -> Weights:
        return jax.device_put(place_weights(self.weights.inception().arrays), replicated(self._mesh))

    @functools.cached_property
    def _i3d_weights(self) -> Weights:
        return jax.device_put(place_weights(self.weights.i3d().arrays), replicated(self._mesh))

    @functools.cache  # noqa: B019 - an engine lives as long as its process
    def _lpips(self, net: Net) -> tuple[Callable[..., Any], Weights]:
        network = Network(lambda rngs: LPIPS(net, policy=Policy(), rngs=rngs))
        arrays = names.to_jax(lpips_weights(net, self.weights.lpips))
        names.require_same_shapes(arrays, network.parameters | network.buffers, f"LPIPS {net}")
        weights = {name: jnp.asarray(np.asarray(array), jnp.float32) for name, array in arrays.items()}

        @jax.jit
        def program(weights: Weights, first: jax.Array, second: jax.Array) -> jax.Array:
            with jax.default_matmul_precision("float32"):
                distances: jax.Array = network.bind(weights)(first, second)
                return distances

        return program, jax.device_put(weights, replicated(self._mesh))

    def _placed(self, weights: Weights, *arrays: np.ndarray) -> tuple[Any, ...]:
        """Weights everywhere, and the batch split over the devices where they can have equal shares."""
        even = len(arrays[0]) % self._mesh.size == 0
        where = batch_sharding(self._mesh) if even else replicated(self._mesh)
        return weights, *(jax.device_put(array, where) for array in arrays)
