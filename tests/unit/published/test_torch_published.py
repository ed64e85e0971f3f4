"""Every published image tokenizer in PyTorch: its weights have the published names and shapes, and load strictly."""

import json
from pathlib import Path

import pytest
import torch

from voken_common.checkpoints import weight_names as names
from voken_common.config.loading import load_config
from voken_common.published.models import MODELS, has_config
from voken_torch.models.lpips import LPIPS
from voken_torch.tokenizer.state import build_players

ROOT = Path(__file__).resolve().parents[3]
TOKENIZERS = [model for model in MODELS if model.family == "image tokenizer" and has_config(model)]


@pytest.mark.parametrize("model", TOKENIZERS, ids=lambda model: model.name)
def test_published_weights_load_strictly(model):
    manifest = json.loads((ROOT / "tests" / "manifests" / model.manifest).read_text())
    weights = {key: torch.empty(shape, device="meta") for key, shape in manifest.items()}
    averages = {key: weights.pop(key) for key in manifest if key.startswith(names.EMA_PREFIX)}
    with torch.device("meta"):
        players = build_players(load_config(ROOT / model.config))
        networks = {"": players.autoencoder, names.DISCRIMINATOR_PREFIX: players.discriminator}
        networks[names.PERCEPTUAL_PREFIX] = LPIPS()
    if not model.averages:
        networks = {"": players.autoencoder}
    tokenizer = torch.nn.Module()
    for prefix, network in networks.items():
        others = [p for p in networks if p and p != prefix]
        own = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        if not prefix:
            own = {k: v for k, v in own.items() if not k.startswith(tuple(others))}
        network.load_state_dict(own, strict=True, assign=True)
        tokenizer.add_module(prefix.replace(".", "_") or "autoencoder", network)
    assert len(tokenizer.state_dict()) == len(weights)
    if not model.averages:
        assert not averages
        return
    trained = [k for k, _ in players.autoencoder.named_parameters()]
    trained += [names.DISCRIMINATOR_PREFIX + k for k, _ in players.discriminator.named_parameters()]
    bookkeeping = {names.EMA_PREFIX + "decay", names.EMA_PREFIX + "num_updates"}
    assert {names.ema_name(key) for key in trained} | bookkeeping == set(averages)
