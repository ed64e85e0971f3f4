"""The quickstart of generators as a script: tokens, training, a wall of samples, and one line of figures."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.tiny_generator import ADAPTIVE, generator_mapping, write_generator
from voken_common.config.loading import load_any_config, load_config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("quickstart_generator", ROOT / "scripts" / "quickstart_generator.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_configuration_fits_its_tokenizer():
    config = load_any_config(ROOT / "configs" / "quickstart_generator.yaml")
    tokenizer = load_config(ROOT / "configs" / "quickstart_lfq.yaml")
    assert config.tokenizer == f"runs/{tokenizer.name}"
    assert config.model.vocabularies == (tokenizer.quantizer.codebook_size,)
    assert config.model.grid * tokenizer.model.downsampling <= tokenizer.data.image_size


def test_classes_are_told_by_mean_colour(script):
    references = np.stack([np.full((2, 2, 3), value, np.float32) for value in (-1.0, -0.8, 0.6, 1.0)])
    images = np.stack([np.full((2, 2, 3), value, np.float32) for value in (0.5, -0.2, -0.1, 0.0)])
    found = script.class_by_colour(images, references, np.array([0, 0, 1, 1]))
    assert found.tolist() == [1, 0, 0, 1], "their means are -0.9 and 0.8"


@pytest.mark.slow
def test_the_whole_script(script, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "CROPS", {"train": 64, "held_out": 32})
    mapping = generator_mapping(tmp_path / "tokens", ADAPTIVE | {"classes": 8}, tokenizer=str(trained.workdir))
    arguments = ["--config", str(write_generator(tmp_path, mapping)), "--workdir", str(tmp_path / "run")]
    assert script.main(arguments) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 0 < result["loss"] < 6
    assert result["seconds"] > 0
    assert result["class_by_guessing"] == 0.125
    assert 0 <= result["class_by_colour"] <= 1
    assert 0.125 < result["class_by_colour_of_held_out_crops"] <= 1
    wall = np.asarray(Image.open(result["picture"]))
    assert wall.std() > 0
    assert script.main([*arguments, "--set", "model.classes=2"]) == 2
    assert "model.classes 2 expects less" in capsys.readouterr().err
