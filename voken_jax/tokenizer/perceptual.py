"""LPIPS as a frozen network: built from the configuration's choice of weights, or left out on request."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from voken_common.checkpoints import weight_names as names
from voken_common.checkpoints.lpips_weights import lpips_vgg_weights
from voken_common.config.schema.tokenizer import Config
from voken_jax.models.functional import Network
from voken_jax.models.lpips import LPIPS
from voken_jax.tokenizer.state import policy_of
from voken_jax.tokenizer.step import Perceptual


def build_lpips(config: Config) -> Network:
    """The network alone; nothing is allocated."""
    policy = policy_of(config.precision)
    return Network(lambda rngs: LPIPS(policy=policy, rngs=rngs))


def load_perceptual(config: Config) -> Perceptual | None:
    """LPIPS with published weights, or None where `perceptual.weights` is none.

    Raises:
        WeightsError: the weights are neither in the cache or folder nor can be downloaded.
        NameMismatch: the files hold other weights than the network needs.
    """
    if config.perceptual.weights == "none":
        return None
    network = build_lpips(config)
    expected = network.parameters | network.buffers
    weights = names.to_jax(lpips_vgg_weights(config.perceptual.weights))
    names.require_same_shapes(weights, expected, f"perceptual.weights {config.perceptual.weights}")
    return Perceptual(network, {n: jnp.asarray(np.asarray(a), expected[n].dtype) for n, a in weights.items()})
