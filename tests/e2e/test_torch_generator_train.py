"""Training a generator in PyTorch: what it leaves, resume, several processes with split weights, and its errors."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.e2e.test_torch_train import assert_same_content
from tests.support.tiny import TINY, tiny_config
from tests.support.tiny_generator import (
    ADAPTIVE,
    FACTORIZED,
    STEPS,
    generator_config,
    generator_mapping,
    write_generator,
)
from tests.support.tiny_generator import write_shards as shards_in
from voken_common.training.log import RunLog
from voken_torch.checkpoints.torch import Checkpoints, find_step, read, read_meta, steps_in
from voken_torch.tokenizer.api import Tokenizer
from voken_torch.tokenizer.state import create_state
from voken_torch.train import main
from voken_torch.training.run import train

ROOT = Path(__file__).resolve().parents[2]
NO_DROPOUT = dict.fromkeys(("token_dropout", "residual_dropout", "feed_forward_dropout", "label_dropout"), 0.0)
DOUBLE = {"param_dtype": "float64", "compute_dtype": "float64"}


class AtStart:
    """The position of data that nothing was taken from."""

    def get_state(self):
        return {}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A tokenizer with 256 codes and 2 pixels per token that never learned anything."""
    folder = tmp_path_factory.mktemp("tokenizer")
    config = tiny_config(folder)
    Checkpoints(folder / "run", config.checkpoint).save(create_state(config), config, AtStart(), {})
    return folder / "run"


@pytest.fixture(scope="module")
def shards(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("shards")
    return shards_in(folder, FACTORIZED["vocabularies"], fingerprint=Tokenizer.load(tokenizer).fingerprint())


@pytest.fixture(scope="module")
def trained(tmp_path_factory, shards, tokenizer):
    """(workdir, configuration, metrics): averages, micro-batches, recomputation, bfloat16, pictures."""
    config = generator_config(
        shards,
        FACTORIZED,
        tokenizer=str(tokenizer),
        optimizer={"ema_decay": 0.5, "gradient_accumulation": 2, "gradient_clip": 1.0},
        precision={"remat": True, "compute_dtype": "bfloat16"},
    )
    workdir = tmp_path_factory.mktemp("trained") / "run"
    return workdir, config, train(config, workdir)


def test_a_run_leaves_what_it_promises(trained):
    workdir, config, metrics = trained
    expected = {"loss", *(f"{name}_{i}" for name in ("loss", "accuracy", "perplexity") for i in range(2))}
    assert metrics.keys() == expected
    assert metrics["loss"] == pytest.approx(metrics["loss_0"] + metrics["loss_1"], rel=1e-5)
    assert metrics["perplexity_0"] == pytest.approx(np.exp(metrics["loss_0"]))
    assert 0 < metrics["loss"] < 2 * np.log(16), "better than a guess"
    assert set(steps_in(workdir / "checkpoints")) == {4, STEPS}
    meta = read_meta(find_step(workdir, "best"))
    made_by = Tokenizer.load(config.tokenizer).fingerprint()
    assert meta.generator == config.model_copy(update={"tokenizer_fingerprint": made_by})
    assert (meta.step, meta.metrics) == (STEPS, metrics)
    assert list((workdir / "tensorboard").glob("events*"))
    picture = np.asarray(Image.open(workdir / "pictures" / f"samples_{STEPS:08d}.png"))
    assert picture.std() > 0
    content = read(find_step(workdir))
    assert content["generator_ema"].keys() == content["generator"].keys()
    assert content["rest"].keys() == {"rng", "optimizer"}


def test_what_is_logged(shards, tmp_path, monkeypatch):
    logged = []
    monkeypatch.setattr(RunLog, "training", lambda log, step, values, shown: logged.append((step, values)))
    shards_in(tmp_path, ADAPTIVE["vocabularies"])
    config = generator_config(tmp_path, ADAPTIVE, data={"validation": None})
    assert train(config, tmp_path / "run") == {}
    assert [step for step, _ in logged] == [3, 6]
    values = logged[0][1]
    assert {"loss", "accuracy", "perplexity", "grad_norm", "learning_rate", "weight_decay"} == values.keys()
    assert values["perplexity"] == pytest.approx(np.exp(values["loss"]))
    # The first step changes nothing of a head that is zero, and the next ones only a little.
    assert values["loss"] == pytest.approx(np.log(256), rel=0.05)
    assert values["weight_decay"] > config.optimizer.weight_decay
    content = read(find_step(tmp_path / "run"))
    assert "generator_ema" not in content
    assert content["rest"]["optimizer"]["count"] == STEPS


def test_stopped_and_resumed_equals_at_once(trained, tmp_path, monkeypatch):
    workdir, config, metrics = trained
    own, advance, steps = tmp_path / "run", RunLog.advance, []

    def interrupted(log):
        advance(log)
        steps.append(1)
        if len(steps) == STEPS // 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunLog, "advance", interrupted)
    assert train(config, own) == {}
    assert find_step(own).name == f"{STEPS // 2}.pt"
    assert train(config, own) == metrics
    assert_same_content(read(find_step(own)), read(find_step(workdir)))
    assert train(config, own) == metrics, "a finished run returns its last validation and does nothing"
    assert len(steps) == STEPS


def test_averages_can_be_switched_on_in_the_middle(shards, tmp_path):
    config = generator_config(shards, FACTORIZED, training={"steps": 2}, data={"validation": None})
    train(config, tmp_path / "run")
    changed = config.model_copy(
        update={
            "optimizer": config.optimizer.model_copy(update={"ema_decay": 1.0}),
            "training": config.training.model_copy(update={"steps": 3}),
        }
    )
    before = read(find_step(tmp_path / "run"))["generator"]
    train(changed, tmp_path / "run")
    assert_same_content(read(find_step(tmp_path / "run"))["generator_ema"], before)


def test_images_are_encoded_as_they_come(tokenizer, tmp_path, capsys):
    images = TINY["data"] | {"train": {"kind": "skimage", "region": "train", "crops": 40}}
    mapping = generator_mapping(
        tmp_path, ADAPTIVE, tokenizer="elsewhere/tok", data={"train": None, "validation": None, "images": images}
    )
    shutil.copytree(tokenizer, tmp_path / "tok")  # beside the work directory
    mapping["model"]["classes"] = 50
    file = write_generator(tmp_path, mapping)
    arguments = ["--config", str(file), "--workdir", str(tmp_path / "run"), "--device", "cpu"]
    assert main([*arguments, "--set", "training.steps=1"]) == 0
    assert read_meta(find_step(tmp_path / "run")).metrics["loss"] == pytest.approx(np.log(256), rel=0.1)
    wrong = [*arguments, "--workdir", str(tmp_path / "other"), "--set"]
    assert main([*wrong, "data.images.image_size=32"]) == 2
    assert "model.grid 8 with the tokenizer's 2 pixels per token expects 16" in capsys.readouterr().err
    assert main([*wrong, "model.vocabularies=[128]"]) == 2
    assert "has 256 codes, model.vocabularies [128] make 128" in capsys.readouterr().err
    assert main([*wrong, "model.classes=1"]) == 2
    assert "model.classes 1 expects less" in capsys.readouterr().err


def test_shards_of_another_tokenizer_are_told(tokenizer, tmp_path):
    shards_in(tmp_path, ADAPTIVE["vocabularies"])
    with pytest.raises(
        ValueError, match="holds tokens of tokenizer tiny .* is another one: its pictures would be wrong"
    ):
        train(generator_config(tmp_path, ADAPTIVE, tokenizer=str(tokenizer)), tmp_path / "run")


@pytest.mark.slow
def test_two_processes_that_share_the_weights_train_as_one(shards, tmp_path):
    mapping = generator_mapping(
        shards, FACTORIZED, precision=DOUBLE, model=NO_DROPOUT, training={"steps": 3}, optimizer={"ema_decay": 0.5}
    )
    file = write_generator(tmp_path, mapping)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command += ["voken_torch.train", "--config", str(file), "--workdir", str(tmp_path / "two"), "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--set", "mesh.fsdp=2"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("training on token shards") == 1, "only the first process speaks"
    config = generator_config(
        shards, FACTORIZED, precision=DOUBLE, model=NO_DROPOUT, training={"steps": 3}, optimizer={"ema_decay": 0.5}
    )
    metrics = train(config, tmp_path / "one")
    ours, expected = read(find_step(tmp_path / "two")), read(find_step(tmp_path / "one"))
    assert ours["metrics"] == pytest.approx(metrics, rel=1e-6)
    for item in ("data", "generator", "generator_ema", "rest"):
        assert_same_content(ours[item], expected[item], 1e-7)
    # One process continues what two had split.
    longer = config.model_copy(update={"training": config.training.model_copy(update={"steps": 4})})
    assert train(longer, tmp_path / "two") == pytest.approx(train(longer, tmp_path / "one"), rel=1e-6)


@pytest.mark.slow
def test_training_without_jax_installed(shards, tmp_path):
    (tmp_path / "blocked").mkdir()
    for name in ("jax", "jaxlib", "flax", "optax", "orbax", "clu"):
        (tmp_path / "blocked" / f"{name}.py").write_text(f"raise ImportError('{name} is blocked')")
    file = write_generator(tmp_path, generator_mapping(shards, FACTORIZED, training={"steps": 2}))
    command = [sys.executable, "-m", "voken_torch.train", "--config", str(file), "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'blocked'}{os.pathsep}{ROOT}"}
    command += ["--workdir", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(steps_in(tmp_path / "run" / "checkpoints")) == {2}
