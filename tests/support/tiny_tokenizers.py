"""The same tiny tokenizer in both frameworks, of seeded weights: nothing is trained for it."""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import torch

import voken_jax
import voken_torch
from tests.support.tiny import TINY
from voken_common.checkpoints.weight_names import to_jax
from voken_common.config.loading import validate
from voken_torch.models.autoencoder import Autoencoder


class Pair(NamedTuple):
    jax: voken_jax.Tokenizer
    torch: voken_torch.Tokenizer


@functools.cache
def tiny_pair() -> Pair:
    """LFQ with 256 codes, 2 x 2 pixels a token."""
    config = validate(TINY, "tiny")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = Autoencoder(config.model, config.quantizer).state_dict()
    arrays = {name: jnp.asarray(leaf) for name, leaf in to_jax({k: v.numpy() for k, v in weights.items()}).items()}
    return Pair(
        voken_jax.Tokenizer(config, arrays, "seeded weights"),
        voken_torch.Tokenizer(config, weights, None, "seeded weights"),
    )
