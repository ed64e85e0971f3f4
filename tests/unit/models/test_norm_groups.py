"""`model.norm_groups`: the group norms of both networks in both frameworks, the adaptive ones too."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from voken_common.checkpoints.weight_names import to_torch
from voken_common.config.loading import load_config
from voken_common.config.schema.model import ModelConfig
from voken_common.config.schema.quantizer import IBQConfig, LFQConfig
from voken_jax.models import magvit2
from voken_jax.models.autoencoder import Autoencoder
from voken_jax.models.functional import Network
from voken_jax.models.layers import GroupNorm, Policy
from voken_torch.models.autoencoder import Autoencoder as TorchAutoencoder
from voken_torch.models.layers import Policy as TorchPolicy
from voken_torch.models.magvit2 import AdaptiveGroupNorm as TorchAdaptiveGroupNorm

CONFIGS = Path(__file__).parents[3] / "configs"
TOKENIZERS = sorted(CONFIGS.glob("open_magvit2/[!g]*.yaml")) + sorted(CONFIGS.glob("ibq/[!g]*.yaml"))
QUANTIZERS = {"magvit2": LFQConfig(codebook_size=16, code_dim=4), "vqgan": IBQConfig(codebook_size=24, code_dim=4)}


def model(network, norm_groups, channels=16):
    return ModelConfig(
        network=network,
        resolution=8,
        channels=channels,
        channel_multipliers=(1, 2),
        residual_blocks=1,
        z_channels=4,
        attention_resolutions=(4,) if network == "vqgan" else (),
        norm_groups=norm_groups,
    )


def both(network, norm_groups, seed=0):
    """The same seeded weights in both frameworks."""
    config, quantizer = model(network, norm_groups), QUANTIZERS[network]
    jax_network = Network(lambda rngs: Autoencoder(config, quantizer, policy=Policy(), rngs=rngs))
    random = np.random.default_rng(seed)
    weights = {
        name: (random.normal(size=leaf.shape) / np.sqrt(max(np.prod(leaf.shape[:-1]), 1))).astype(np.float32)
        for name, leaf in jax_network.parameters.items()
    }
    torch_network = TorchAutoencoder(config, quantizer)
    torch_network.load_state_dict({name: torch.tensor(array) for name, array in to_torch(weights).items()})
    return jax_network.bind({name: jnp.asarray(array) for name, array in weights.items()}), torch_network


@pytest.mark.parametrize("network", QUANTIZERS)
def test_frameworks_agree_and_the_setting_changes_the_result(network):
    images = np.random.default_rng(1).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    found = {}
    for groups in (4, 8):
        in_jax, in_torch = both(network, groups)
        latents = in_jax.encode(jnp.asarray(images))
        with torch.no_grad():
            expected = in_torch.encode(torch.tensor(images).movedim(-1, 1))
            np.testing.assert_allclose(latents, expected, atol=2e-5)
            decoded = in_torch.decode(expected).movedim(1, -1)
        found[groups] = np.asarray(in_jax.decode(latents))
        np.testing.assert_allclose(found[groups], decoded, atol=2e-5)
    assert np.abs(found[4] - found[8]).max() > 0.01


def adaptive_by_hand(x, style, groups, gamma, beta):
    """In float64, group by group: x (B, H, W, C), style (B, h, w, Z), gamma and beta as (weight (C, Z), bias (C,))."""
    x, style = x.astype(np.float64), style.astype(np.float64)
    result = np.empty_like(x)
    size = x.shape[-1] // groups
    for b in range(len(x)):
        scale = gamma[0] @ np.sqrt(style[b].reshape(-1, style.shape[-1]).var(axis=0, ddof=1) + 1e-6) + gamma[1]
        bias = beta[0] @ style[b].mean(axis=(0, 1)) + beta[1]
        for g in range(groups):
            channels = slice(g * size, (g + 1) * size)
            part = x[b, ..., channels]
            normal = (part - part.mean()) / np.sqrt(part.var() + 1e-6)
            result[b, ..., channels] = normal * scale[channels] + bias[channels]
    return result


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_adaptive_norm_follows(groups):
    random = np.random.default_rng(2)
    x, style = random.normal(1, 2, (2, 4, 4, 8)).astype("f"), random.normal(size=(2, 2, 2, 3)).astype("f")
    policy = Policy().with_groups(groups)
    in_jax = magvit2.AdaptiveGroupNorm(3, 8, policy=policy, rngs=nnx.Rngs(0))
    linear = {name: getattr(in_jax, name) for name in ("gamma", "beta")}
    arrays = {name: (np.asarray(layer.kernel[...]).T, np.asarray(layer.bias[...])) for name, layer in linear.items()}
    expected = adaptive_by_hand(x, style, groups, **arrays)
    np.testing.assert_allclose(in_jax(jnp.asarray(x), jnp.asarray(style)), expected, atol=2e-5)

    in_torch = TorchAdaptiveGroupNorm(3, 8, TorchPolicy().with_groups(groups))
    in_torch.load_state_dict(
        {
            f"{name}.{part}": torch.tensor(array)
            for name, pair in arrays.items()
            for part, array in zip(("weight", "bias"), pair, strict=True)
        }
    )
    with torch.no_grad():
        found = in_torch(torch.tensor(x).movedim(-1, 1), torch.tensor(style).movedim(-1, 1)).movedim(1, -1)
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_absolute_colour_survives_only_shared_groups():
    """As many groups as channels erase what a constant added to a channel says; fewer groups keep it."""
    x = np.random.default_rng(3).normal(size=(1, 4, 4, 8)).astype("f")
    shifted = x.copy()
    shifted[..., 0] += 3
    for groups, kept in ((8, False), (2, True)):
        norm = GroupNorm(8, policy=Policy().with_groups(groups))
        difference = np.abs(np.asarray(norm(jnp.asarray(shifted)) - norm(jnp.asarray(x)))).max()
        assert (difference > 0.1) == kept, groups


def test_channels_must_be_divisible():
    with pytest.raises(ValueError, match=r"16 \* 1 is not divisible by the 12 groups of group norm \(norm_groups\)"):
        model("vqgan", 12)


@pytest.mark.parametrize("file", TOKENIZERS, ids=lambda file: file.stem)
def test_published_configurations_have_32(file):
    assert load_config(file).model.norm_groups == 32
