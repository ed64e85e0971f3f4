"""Training a generator from a configuration file to checkpoints: what it leaves, resume, its data, and its errors."""

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.e2e.test_train import assert_same_state, steps_on_disk
from tests.support.tiny import TINY
from tests.support.tiny_generator import (
    ADAPTIVE,
    FACTORIZED,
    STEPS,
    generator_config,
    generator_mapping,
    write_generator,
)
from tests.support.tiny_generator import write_shards as shards_in
from voken_common.config.loading import load_any_config
from voken_common.data.tokens.format import split_ids
from voken_common.data.tokens.pipeline import TokenIterator, build_token_iterator
from voken_common.processes import Processes
from voken_common.training.data import open_data
from voken_common.training.flops import sample_flops
from voken_common.training.log import RunLog
from voken_jax.checkpoints.orbax import Checkpoints, find_step, read_meta
from voken_jax.dry_run.command import dry_run
from voken_jax.generator.data import GeneratorData
from voken_jax.parallel.sharding import make_mesh
from voken_jax.tokenizer.api import Tokenizer
from voken_jax.tokenizer.state import build_generator_network
from voken_jax.train import main
from voken_jax.training import run as trainer
from voken_jax.training.run import train

EIGHT = ADAPTIVE | {"classes": 8}
"""As many classes as there are photographs, so that runs on shards and on images share one program."""
IMAGES = TINY["data"] | {"train": {"kind": "skimage", "region": "train", "crops": 40}}


@pytest.fixture(scope="module")
def shards(tmp_path_factory, trained):
    """Made-up tokens that say they are of the tokenizer which all tests share."""
    folder = tmp_path_factory.mktemp("shards")
    return shards_in(folder, ADAPTIVE["vocabularies"], fingerprint=Tokenizer.load(trained.workdir).fingerprint())


@pytest.fixture(scope="module")
def run(tmp_path_factory, shards, trained):
    """(workdir, configuration, metrics, what was logged) of six steps without a break, with averages and pictures."""
    config = generator_config(shards, EIGHT, tokenizer=str(trained.workdir), optimizer={"ema_decay": 0.5})
    workdir, logged, training = tmp_path_factory.mktemp("generator") / "run", [], RunLog.training

    def record(log, step, values, shown):
        logged.append((step, values))
        training(log, step, values, shown)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(RunLog, "training", record)
        return workdir, config, train(config, workdir), logged


def restored(workdir, config):
    """(the newest state on disk, the position of the data it was saved with)."""
    iterator = build_token_iterator(config.data, batch_size_per_process=config.training.batch_size, seed=config.seed)
    checkpoints = Checkpoints(workdir, config.checkpoint)
    try:
        return checkpoints.restore(
            trainer.build(config, 5, Path(config.tokenizer)).abstract, iterator
        ), iterator.position
    finally:
        checkpoints.close()
        iterator.close()


def test_a_run_leaves_what_it_promises(run):
    workdir, config, metrics, _ = run
    assert metrics.keys() == {"loss", "accuracy", "perplexity"}
    assert metrics["perplexity"] == pytest.approx(np.exp(metrics["loss"]))
    assert 0 < metrics["loss"] < np.log(256) - 0.2, "better than a guess"
    assert steps_on_disk(workdir) == [4, STEPS]
    meta = read_meta(find_step(workdir, "best"))
    made_by = Tokenizer.load(config.tokenizer).fingerprint()
    assert meta.generator == config.model_copy(update={"tokenizer_fingerprint": made_by})
    assert (meta.step, meta.metrics) == (STEPS, metrics)
    assert load_any_config(workdir / "config.yaml") == meta.generator
    assert list((workdir / "tensorboard").glob("events*"))
    picture = np.asarray(Image.open(workdir / "pictures" / f"samples_{STEPS:08d}.png"))
    assert picture.std() > 0
    state, _ = restored(workdir, config)
    assert {"blocks.0.attention.wqkv.kernel", "blocks.1.feed_forward.w2.kernel"} <= state.generator.keys()
    assert state.generator_ema.keys() == state.generator.keys()


def test_what_is_logged(run):
    _, config, _, logged = run
    assert [step for step, _ in logged] == [3, 6]
    values = logged[0][1]
    assert {"loss", "accuracy", "perplexity", "grad_norm", "learning_rate", "weight_decay"} == values.keys()
    assert values["perplexity"] == pytest.approx(np.exp(values["loss"]))
    assert values["learning_rate"] == pytest.approx(config.optimizer.learning_rate)
    assert config.optimizer.weight_decay < values["weight_decay"] < config.optimizer.weight_decay_end
    assert logged[1][1]["weight_decay"] == pytest.approx(config.optimizer.weight_decay_end)
    assert logged[1][1]["loss"] < values["loss"]
    rates = trainer.build(config, 5, Path(config.tokenizer)).rates
    assert rates == {"tokens_per_second": 64.0}, "no peak is known for a CPU"


def test_stopped_and_resumed_equals_at_once(run, tmp_path, monkeypatch):
    whole, config, metrics, _ = run
    own, advance, steps = tmp_path / "run", RunLog.advance, []

    def interrupted(log):
        advance(log)
        steps.append(1)
        if len(steps) == STEPS // 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunLog, "advance", interrupted)
    assert train(config, own) == {}
    assert find_step(own).name == str(STEPS // 2)
    assert train(config, own) == metrics
    (state, position), (expected, end) = restored(own, config), restored(whole, config)
    assert position == end == STEPS * config.training.batch_size
    assert_same_state(state, expected)
    assert train(config, own) == metrics, "a finished run returns its last validation and does nothing"
    assert len(steps) == STEPS
    assert trainer.build(config, 5, Path(config.tokenizer)).run.step.program._cache_size() == 1, (
        "a restored state is laid out as a fresh one"
    )


def test_averages_can_be_switched_on_in_the_middle(run, tmp_path):
    workdir, config = shutil.copytree(run[0], tmp_path / "run"), run[1]
    shutil.rmtree(workdir / "checkpoints" / str(STEPS) / "generator_ema")
    unchecked = config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"checksums": False})})
    state, _ = restored(workdir, unchecked)
    assert int(state.step) == STEPS
    assert_same_state(state.generator_ema, state.generator)


@pytest.mark.slow
def test_two_sub_tokens_are_logged_apart(tmp_path):
    shards_in(tmp_path, FACTORIZED["vocabularies"])
    metrics = train(generator_config(tmp_path, FACTORIZED, training={"steps": 1}), tmp_path / "run")
    assert metrics.keys() == {"loss", *(f"{name}_{i}" for name in ("loss", "accuracy", "perplexity") for i in (0, 1))}
    assert metrics["loss"] == pytest.approx(metrics["loss_0"] + metrics["loss_1"], rel=1e-5)
    assert metrics["perplexity_1"] == pytest.approx(np.exp(metrics["loss_1"]))


@pytest.mark.parametrize("kind", [ADAPTIVE, FACTORIZED])
def test_images_become_the_tokens_of_their_tokenizer(trained, tmp_path, kind):
    config = generator_config(tmp_path, kind | {"classes": 8}, tokenizer=str(trained.workdir), data=only_images())
    iterator = open_data(config, Processes())
    batch = next(iterator)
    iterator.close()
    placed = GeneratorData(config, make_mesh(config.mesh)).place(dict(batch))
    ids = np.asarray(Tokenizer.load(trained.workdir).encode(batch["image"])).reshape(8, -1)
    np.testing.assert_array_equal(placed["tokens"], split_ids(ids, kind["vocabularies"]))
    np.testing.assert_array_equal(placed["labels"], batch["label"])
    assert len(np.unique(batch["label"])) > 1
    assert len(placed["tokens"].sharding.device_set) == 8


def only_images(**settings):
    return {"train": None, "validation": None, "images": IMAGES | settings}


def test_images_are_encoded_as_they_come_and_unfit_ones_are_told(trained, tmp_path, capsys):
    mapping = generator_mapping(
        tmp_path, EIGHT, tokenizer=str(trained.workdir), data=only_images(), optimizer={"ema_decay": 0.5}
    )
    arguments = ["--config", str(write_generator(tmp_path, mapping)), "--workdir", str(tmp_path / "run")]
    assert main(arguments) == 0
    assert 0 < read_meta(find_step(tmp_path / "run")).metrics["loss"] < np.log(256)
    assert (tmp_path / "run" / "pictures" / f"samples_{STEPS:08d}.png").is_file()
    wrong = [*arguments, "--workdir", str(tmp_path / "other"), "--set"]
    assert main([*wrong, "data.images.image_size=32"]) == 2
    assert "model.grid 8 with the tokenizer's 2 pixels per token expects 16" in capsys.readouterr().err
    assert main([*wrong, "model.vocabularies=[128]"]) == 2
    assert "has 256 codes, model.vocabularies [128] make 128" in capsys.readouterr().err
    assert main([*wrong, "model.classes=1"]) == 2
    assert "data.images gives class" in (message := capsys.readouterr().err)
    assert "model.classes 1 expects less" in message


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data.train=null", "data.validation=null"], "expected either train (a folder of token shards) or images"),
        (["data.images={train: {kind: skimage, region: all}, image_size: 16}"], "found both, train "),
        (["data.train=null", "data.images={train: {kind: skimage, region: all}, image_size: 16}"], "images.validation"),
        (
            [
                "tokenizer=null",
                "data={train: null, validation: null, images: {train: {kind: skimage, region: all}, image_size: 16}}",
            ],
            "data.images needs tokenizer",
        ),
        (["model.grid=4"], "with grid [8, 8], model.grid expects [4, 4]"),
        (["model.vocabularies=[64]"], "with vocabularies [256], model.vocabularies expects [64]"),
        (["model.classes=2"], "has labels up to 2, model.classes 2 expects less"),
        (["data.train=nowhere"], "no token shards in nowhere"),
        (["tokenizer=nowhere"], "whose tokenizer is nowhere: found nothing at "),
        (["mesh.model=4", "mesh.fsdp=2"], "mesh.model 4 must divide model.heads 2"),
        (["training.batch_size=12"], "training.batch_size 12 is not divisible by 8"),
    ],
)
def test_what_cannot_be_used_is_told(shards, trained, tmp_path, capsys, overrides, expected):
    mapping = generator_mapping(shards, tokenizer=str(trained.workdir))
    arguments = ["--config", str(write_generator(tmp_path, mapping)), "--workdir", str(tmp_path / "run")]
    for override in overrides:
        arguments += ["--set", override]
    assert main(arguments) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_checkpoints_of_the_wrong_kind_are_told(run, shards, trained, tmp_path, capsys):
    file = str(write_generator(tmp_path, generator_mapping(shards, tokenizer=str(run[0]))))
    assert main(["--config", file, "--workdir", str(tmp_path / "run")]) == 2
    assert "found the checkpoint of generator tiny_generator, expected one of a tokenizer" in capsys.readouterr().err
    workdir = shutil.copytree(trained.workdir, tmp_path / "tokenizer")
    assert main(["--config", file, "--workdir", str(workdir), "--set", "tokenizer=null"]) == 2
    assert "the checkpoint was trained with kind tokenizer, this run has generator" in capsys.readouterr().err


def test_tokens_of_another_tokenizer_are_told(trained, tmp_path, capsys):
    shards_in(tmp_path, ADAPTIVE["vocabularies"])
    file = write_generator(tmp_path, generator_mapping(tmp_path, tokenizer=str(trained.workdir)))
    assert main(["--config", str(file), "--workdir", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert "holds tokens of tokenizer tiny (made up)" in message
    assert "is another one: its pictures would be wrong" in message


def test_dry_run_trains_nothing_and_shows_what_is_split(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(TokenIterator, "__next__", None)
    monkeypatch.chdir(tmp_path)
    config = generator_config(tmp_path / "nowhere", mesh={"fsdp": 4, "model": 2})
    report = dry_run(config)
    text = capsys.readouterr().out
    assert "tiny_generator: dry run on a mesh of {'data': 1, 'fsdp': 4, 'model': 2}" in text
    assert "64 tokens a sample" in text
    assert "TFLOP per step (matrix products, backward passes included)" in text
    assert not list(tmp_path.iterdir())
    assert report["devices"] == 8
    assert report["parameters"] == sum(np.prod(s.shape) for s in build_generator_network(config).parameters.values())
    whole = 3 * 4 * report["parameters"]
    assert whole / 8 < report["state_bytes_per_device"] < whole / 4, "weights and two moments, most of them split"
    assert report["argument_bytes_per_device"] > report["state_bytes_per_device"]
    assert report["flops_per_device"] == sample_flops(config.model)
