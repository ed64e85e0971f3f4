"""What the code wrote before config keys were renamed is read, and training goes on from it."""

import json
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from voken_common.checkpoints.conversion.safetensors_file import read_safetensors
from voken_common.config.loading import ConfigError, load_any_config, load_config
from voken_common.data.tokens.shards import TokenShardSource
from voken_jax.checkpoints import orbax
from voken_torch.checkpoints import torch as torch_checkpoint
from voken_torch.checkpoints.load import load

ARCHIVE = Path(__file__).resolve().parents[1] / "before_renaming" / "runs.tar.xz"


@pytest.fixture
def before(tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def pattern(name, value):
    """The values that the fixture has in place of trained ones: a short row of the name, repeated."""
    row = np.round(np.random.default_rng(zlib.crc32(name.encode())).normal(size=13) * 0.05 * 1024) / 1024
    return np.resize(row, value.shape).astype(value.dtype)


def assert_renamed(config):
    """Values that the old configuration held under old names."""
    assert config.optimizer.gradient_accumulation == 2
    if config.kind == "generator":
        return
    assert config.optimizer.schedule.kind == "linear"
    assert config.quantizer.memory_budget_mib == 32
    if config.quantizer.kind == "ibq":
        assert (config.quantizer.quantizer_weight, config.quantizer.entropy_weight) == (1.25, 0.1)
    else:
        assert config.quantizer.entropy_weight == 0.1


@pytest.mark.parametrize("kind", ["lfq", "ibq", "generator"])
@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_a_work_directory_says_what_it_is(framework, kind, before):
    run = before / framework / kind
    assert_renamed(load_any_config(run / "config.yaml"))
    checkpoints = orbax if framework == "jax" else torch_checkpoint
    meta = checkpoints.read_meta(checkpoints.find_step(run))
    assert meta.step == 2
    assert_renamed(meta.config)


def test_old_names_are_told_once_with_new_ones(before, caplog):
    caplog.set_level("INFO", "voken")
    file = before / "torch" / "ibq" / "config.yaml"
    for _ in range(2):
        load_config(file)
    told = [line for line in caplog.messages if str(file) in line]
    assert len(told) == len(set(told)) == 4
    assert f"{file}: optimizer.accumulate is called optimizer.gradient_accumulation now, and is still read" in told
    kind = "optimizer.schedule.kind"
    assert f"{file}: {kind} lin0 is called {kind} linear now, and is still read" in told


def test_overrides_take_old_names(before):
    file = before / "jax" / "lfq" / "config.yaml"
    config = load_config(file, ["optimizer.accumulate=4", "quantizer.codebook_weight=0.5"])
    assert (config.optimizer.gradient_accumulation, config.quantizer.entropy_weight) == (4, 0.5)
    # What LFQ called so is not a setting of IBQ, where the new name means the same.
    with pytest.raises(ConfigError, match="unknown key quantizer.codebook_weight"):
        load_config(before / "jax" / "ibq" / "config.yaml", ["quantizer.codebook_weight=0.5"])


def test_both_names_at_once_are_an_error(before):
    file = before / "jax" / "lfq" / "config.yaml"
    file.write_text(file.read_text().replace("  accumulate: 2", "  accumulate: 2\n  gradient_accumulation: 2"))
    with pytest.raises(ConfigError, match="unknown key optimizer.accumulate"):
        load_config(file)


@pytest.mark.parametrize("kind", ["lfq", "ibq"])
def test_weights_are_the_same(kind, before):
    arrays = {name: value.numpy() for name, value in load(before / "torch" / kind).weights.items()}
    kernels = {name: value for name, value in arrays.items() if value.ndim == 4}
    assert len(kernels) > 10
    for name, value in kernels.items():
        np.testing.assert_array_equal(value, pattern(f".generator_ema.{name}", value), err_msg=name)


def test_safetensors_and_tokens_are_read(before):
    meta, arrays = read_safetensors(before / "lfq.safetensors")
    assert_renamed(meta.config)
    assert arrays.keys() == load(before / "torch" / "lfq").weights.keys()
    source = TokenShardSource(before / "tokens")
    assert (len(source), source.info.vocabularies) == (12, (4, 16))
    assert json.loads((before / "tokens" / "tokens.json").read_text())["tokenizer"]["name"] == "before_lfq"


@pytest.mark.parametrize(
    ("framework", "kind"),
    [
        ("torch", "lfq"),
        ("torch", "ibq"),
        ("torch", "generator"),
        pytest.param("jax", "lfq", marks=pytest.mark.slow),
        pytest.param("jax", "ibq", marks=pytest.mark.slow),
        pytest.param("jax", "generator", marks=pytest.mark.slow),
    ],
)
def test_training_goes_on(framework, kind, before, monkeypatch, caplog):
    """To the fourth step; the relative paths of its configuration start at the folder."""
    import importlib

    caplog.set_level("INFO", "voken")
    monkeypatch.chdir(before)
    run = before / framework / kind
    config = load_any_config(run / "config.yaml")
    importlib.import_module(f"voken_{framework}.training.run").train(config, run)
    assert "continuing at step 2" in caplog.text
    assert "settings changed" not in caplog.text
    checkpoints = orbax if framework == "jax" else torch_checkpoint
    assert checkpoints.read_meta(checkpoints.find_step(run)).step == 4
