"""Generators in the published layout, and what tests of voken-convert do with them."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from tests.support.tiny import TINY, quantized_by
from tests.support.tiny_generator import ADAPTIVE, FACTORIZED, generator_mapping
from voken_common.config.loading import validate_any
from voken_jax import convert
from voken_jax.conversion import run
from voken_jax.conversion.networks import manifest_of

FAMILIES = {
    "factorized": (FACTORIZED, TINY),
    "adaptive": (ADAPTIVE | {"vocabularies": [24]}, quantized_by("ibq")),
}


@pytest.fixture(scope="module", autouse=True)
def networks_once():
    """Find names and shapes of a configuration once per module that imports this."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(run, "manifest_of", functools.cache(manifest_of))
        yield


def call(*arguments):
    return convert.main([str(argument) for argument in arguments])


def draw(shapes, rng, deviation=0.2):
    arrays = {name: rng.normal(0, deviation, leaf.shape).astype(np.float32) for name, leaf in shapes.items()}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


class Published:
    """A seeded generator in the published layout, and the configurations of both networks in it."""

    def __init__(self, folder, family):
        model, tokenizer = FAMILIES[family]
        self.mapping = generator_mapping(Path("shards"), model)
        self.config, self.tokenizer_config = (validate_any(m, family) for m in (self.mapping, tokenizer))
        rng = np.random.default_rng(0)
        self.weights = draw(manifest_of(self.config).generator, rng, 0.7)
        self.tokenizer_weights = draw(manifest_of(self.tokenizer_config).generator, rng)
        self.state_dict = {f"transformer.{name}": tensor for name, tensor in self.weights.items()}
        self.state_dict |= {f"first_stage_model.{name}": tensor for name, tensor in self.tokenizer_weights.items()}
        self.file, self.family = folder / f"{family}.ckpt", family
        self.write(self.file, self.state_dict)
        for name, mapping in (("gen.yaml", self.mapping), ("tok.yaml", tokenizer)):
            (folder / name).write_text(yaml.safe_dump(mapping))
        self.options = ("--config", folder / "gen.yaml", "--tokenizer-config", folder / "tok.yaml")

    @staticmethod
    def write(path, state_dict):
        torch.save({"state_dict": state_dict, "global_step": 11, "epoch": 2, "optimizer_states": [1]}, path)
        return path


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert np.asarray(ours[name]).tobytes() == np.asarray(theirs[name]).tobytes(), name
