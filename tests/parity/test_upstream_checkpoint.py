"""A checkpoint in the published layout, converted for both frameworks: its ids and its reconstruction."""

import numpy as np
import pytest
import torch

from tests.support.golden_cases import FORWARD_FLOAT32, assert_close, channels_first, channels_last
from tests.support.reference_config import checkpoint_config
from voken_common.config.loading import to_yaml
from voken_jax.convert import main
from voken_jax.tokenizer.api import Tokenizer as JaxTokenizer
from voken_torch.tokenizer.api import Tokenizer as TorchTokenizer

KINDS = ["upstream_checkpoint"]


def convert(case, folder, name, *options):
    """The converted checkpoint."""
    config = folder / "config.yaml"
    config.write_text(to_yaml(checkpoint_config(case)))
    arguments = [str(case.path.with_suffix(".ckpt")), str(folder / name), "--config", str(config), *options]
    assert main(arguments) == 0
    return folder / name


def check(case, ids, decoded):
    assert_close(np.asarray(ids).reshape(-1), case.arrays["out/indices"], "ids")
    assert_close(decoded, np.clip(case.arrays["out/reconstruction"], -1, 1), "reconstruction", FORWARD_FLOAT32)


@pytest.mark.parametrize("name", ["orbax", "weights.safetensors"])
def test_in_jax(case, tmp_path, name):
    tokenizer = JaxTokenizer.load(convert(case, tmp_path, name, "--weights", "ema"))
    ids = tokenizer.encode(channels_last(case.input(np.float32)))
    check(case, ids, channels_first(tokenizer.decode(ids)))


def test_in_torch(case, tmp_path):
    tokenizer = TorchTokenizer.load(convert(case, tmp_path, "step.pt", "--weights", "ema"))
    ids = tokenizer.encode(torch.from_numpy(case.input(np.float32)))
    check(case, ids, tokenizer.decode(ids).numpy())


def test_the_file_itself_in_jax(case, tmp_path, monkeypatch):
    monkeypatch.setenv("VOKEN_CACHE", str(tmp_path))
    tokenizer = JaxTokenizer.load(case.path.with_suffix(".ckpt"))
    ids = tokenizer.encode(channels_last(case.input(np.float32)))
    check(case, ids, channels_first(tokenizer.decode(ids)))


def test_the_file_itself_in_torch(case, tmp_path, monkeypatch):
    monkeypatch.setenv("VOKEN_CACHE", str(tmp_path))
    tokenizer = TorchTokenizer.load(case.path.with_suffix(".ckpt"))
    ids = tokenizer.encode(torch.from_numpy(case.input(np.float32)))
    check(case, ids, tokenizer.decode(ids).numpy())


def test_averages_are_preferred_and_raw_weights_are_others(case, tmp_path):
    place = convert(case, tmp_path, "orbax")
    image = channels_last(case.input(np.float32))
    found = {weights: np.asarray(JaxTokenizer.load(place, weights=weights).encode(image)) for weights in (None, "raw")}
    np.testing.assert_array_equal(found[None].reshape(-1), case.arrays["out/indices"])
    assert (found["raw"] != found[None]).mean() > 0.5
