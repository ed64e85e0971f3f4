"""LPIPS as a setting: left out and said so, loaded from a file, or an error that says what to put where."""

import jax
import numpy as np
import pytest
import torch

from tests.support.tiny import tiny_config
from voken_common.checkpoints.downloads import WeightsError
from voken_common.checkpoints.lpips_weights import PREFIX, lpips_shapes
from voken_jax.tokenizer.perceptual import build_lpips, load_perceptual
from voken_jax.training.run import build


def seeded_weights():
    """Random weights of LPIPS under the reference's keys, small enough to stay finite."""
    random = np.random.default_rng(0)
    shapes = lpips_shapes("vgg")
    return {key: (random.normal(size=shape) * 0.05).astype(np.float32) for key, shape in shapes.items()} | {
        "scaling_layer.scale": np.full((1, 3, 1, 1), 0.45, np.float32)
    }


def test_none_is_said_at_the_start(tmp_path, caplog):
    caplog.set_level("INFO", "voken")
    config = tiny_config(tmp_path)
    assert load_perceptual(config) is None
    build(config, 5)
    assert "training WITHOUT perceptual loss" in caplog.text


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_without_the_files_says_what_to_put_where(tmp_path, exists):
    folder = tmp_path / "weights"
    if exists:
        folder.mkdir()
    config = tiny_config(tmp_path, f"perceptual.weights={folder}")
    expected = r"no vgg16-397923af\.pth in .*weights; expected it from torchvision.*none, auto, a folder"
    with pytest.raises(WeightsError, match=expected):
        load_perceptual(config)


def test_a_checkpoint_that_carries_lpips(tmp_path):
    weights = seeded_weights()
    file = tmp_path / "tokenizer.ckpt"
    torch.save({"state_dict": {PREFIX + key: torch.from_numpy(array) for key, array in weights.items()}}, file)
    config = tiny_config(tmp_path, f"perceptual.weights={file}")
    perceptual = load_perceptual(config)
    expected = build_lpips(config)
    assert perceptual.weights.keys() == (expected.parameters | expected.buffers).keys()
    kernel = perceptual.weights["net.slice5.28.kernel"]
    np.testing.assert_array_equal(kernel, weights["net.slice5.28.weight"].transpose(2, 3, 1, 0))

    distance = jax.jit(lambda weights, x, y: perceptual.network.bind(weights)(x, y))
    x, y = np.random.default_rng(1).uniform(-1, 1, (2, 2, 16, 16, 3)).astype(np.float32)
    same, other = (np.abs(distance(perceptual.weights, x, image)) for image in (x, y))
    assert same.max() < 1e-6 * other.min(), "the two passes over one image may be compiled differently"
