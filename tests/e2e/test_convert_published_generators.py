"""Published generators and their tokenizers are recognised by the names and shapes of their weights."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from voken_common.checkpoints.conversion import matching
from voken_common.config.loading import load_any_config
from voken_common.published import models as published
from voken_jax.conversion import run
from voken_jax.conversion.networks import manifest_of

MANIFESTS = Path(__file__).parents[1] / "manifests"


def published_contents(name):
    model = published.find(name)
    manifest = json.loads((MANIFESTS / model.manifest).read_text())
    weights = {key: np.broadcast_to(np.float32(0), shape) for key, shape in manifest.items()}
    return run.lightning.to_contents({"state_dict": weights}, "published.ckpt")


GENERATORS = [model for model in published.MODELS if model.family == "generator"]


@pytest.mark.parametrize("model", GENERATORS, ids=lambda model: model.name)
def test_published_generators_are_recognised(model):
    contents = published_contents(model.full_name)
    config, found = matching.find_config(contents, manifest_of)
    assert (config.kind, config.name, found) == ("generator", model.name, model)
    assert config.model.network == ("adaptive" if model.project == "IBQ" else "factorized")
    assert matching.published_tokenizer(config) == model.tokenizer


@pytest.mark.parametrize("project", ["IBQ", pytest.param("Open-MAGVIT2", marks=pytest.mark.slow)])
def test_tokenizers_of_published_generators_are_recognised(project, caplog):
    model = published.find(f"{project}/imagenet_conditional_llama_B")
    stage = published_contents(model.full_name).first_stage
    matching.find_config(stage, run.manifest_of, option="--tokenizer-config")
    assert "which have the same networks" in caplog.text
    assert "--tokenizer-config pretrain_" in caplog.text
    tokenizer, _ = matching.find_config(stage, run.manifest_of, model.tokenizer)
    assert tokenizer.name == model.tokenizer
    config = load_any_config(published.config_file(model))
    assert tokenizer.quantizer.codebook_size == math.prod(config.model.vocabularies)
