"""The training command from a configuration file to checkpoints: resume, a clean stop, divergence, and its errors."""

import os
import shutil
import signal

import jax
import numpy as np
import pytest
from PIL import Image

from tests.e2e.conftest import record_batches
from tests.support.tiny import STEPS, quantized_by, tiny_config, write
from voken_common.config.loading import load_config, validate, with_overrides
from voken_common.data.pipeline import TrainIterator, build_train_iterator
from voken_common.errors import CheckpointError, NonFiniteError
from voken_common.training.log import RunLog, StopRequest
from voken_jax.checkpoints.orbax import Checkpoints, find_step, read_meta
from voken_jax.dry_run.command import dry_run
from voken_jax.train import main
from voken_jax.training import run as trainer
from voken_jax.training.run import train


def restored(workdir, config):
    """(the newest state on disk, the position of the data it was saved with)."""
    iterator = build_train_iterator(config.data, batch_size_per_process=config.training.batch_size, seed=config.seed)
    checkpoints = Checkpoints(workdir, config.checkpoint)
    try:
        return checkpoints.restore(trainer.build(config, 5).abstract, iterator), iterator.position
    finally:
        checkpoints.close()
        iterator.close()


def assert_same_state(left, right):
    """Every leaf, bit for bit."""
    left, right = (jax.tree_util.tree_leaves_with_path(state) for state in (left, right))
    assert [path for path, _ in left] == [path for path, _ in right]
    for (path, a), (_, b) in zip(left, right, strict=True):
        assert a.dtype == b.dtype, path
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=jax.tree_util.keystr(path))


def steps_on_disk(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdecimal())


def test_a_run_leaves_what_it_promises(trained):
    assert {"l1", "psnr", "codebook_usage", "codebook_perplexity"} <= trained.metrics.keys()
    assert steps_on_disk(trained.workdir) == [4, STEPS]
    written = load_config(trained.workdir / "config.yaml")
    meta = read_meta(find_step(trained.workdir))
    assert trained.config == written == meta.config
    assert meta.step == STEPS
    assert meta.metrics == trained.metrics
    assert list((trained.workdir / "tensorboard").glob("events*"))
    picture = np.asarray(Image.open(trained.workdir / "pictures" / f"reconstructions_{STEPS:08d}.png"))
    assert picture.ndim == 3
    assert picture.std() > 0


def test_stopped_and_resumed_equals_at_once(trained, tmp_path, monkeypatch, caplog):
    config, workdir = tiny_config(tmp_path), tmp_path / "run"
    batches, advance, handler = record_batches(monkeypatch), RunLog.advance, signal.getsignal(signal.SIGINT)

    def interrupted(log):
        advance(log)
        if len(batches) == STEPS // 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(RunLog, "advance", interrupted)
    assert train(config, workdir) == {}
    assert signal.getsignal(signal.SIGINT) is handler
    assert find_step(workdir).name == str(STEPS // 2)
    assert len(batches) == STEPS // 2

    caplog.set_level("INFO", "voken")
    metrics = train(config, workdir)
    assert f"continuing at step {STEPS // 2}" in caplog.text
    assert metrics == trained.metrics
    np.testing.assert_array_equal(np.stack(batches), np.stack(trained.batches))
    (state, position), (expected, whole) = restored(workdir, config), restored(trained.workdir, config)
    assert position == whole == STEPS * config.training.batch_size
    assert int(state.step) == STEPS
    assert int(state.failure) == 0
    assert_same_state(state, expected)

    assert train(config, workdir) == metrics, "a finished run returns its last validation and does nothing"
    assert len(batches) == STEPS


def test_changed_settings_that_fit_are_told(trained, tmp_path, caplog):
    workdir = shutil.copytree(trained.workdir, tmp_path / "run")
    changed = with_overrides(trained.config, ["training.log_every=5"])
    caplog.set_level("INFO", "voken")
    assert train(changed, workdir) == trained.metrics
    assert "settings changed since the checkpoint: training" in caplog.text
    assert load_config(workdir / "config.yaml") == changed


def test_the_second_interrupt_stops_at_once():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_divergence_stops_and_keeps_the_last_checkpoint_good(tmp_path, monkeypatch, capsys):
    workdir = tmp_path / "run"

    def spoil(number, images):
        if number >= 5:
            images[0, 0, 0, 0] = np.nan

    with monkeypatch.context() as patch:
        record_batches(patch, spoil)
        assert main(["--config", str(write(tmp_path)), "--workdir", str(workdir)]) == 3
    message = capsys.readouterr().err
    assert "error: step 5: not finite: " in message
    assert "reconstruction_loss" in message
    assert "learning rate" in message
    assert "last checkpoint is good" in message
    assert steps_on_disk(workdir) == [2, 4]
    state, position = restored(workdir, tiny_config(tmp_path))
    assert all(np.isfinite(np.asarray(leaf, np.float64)).all() for leaf in jax.tree.leaves(state))
    assert (int(state.step), int(state.failure), position) == (4, 0, 32)

    with monkeypatch.context() as patch:
        record_batches(patch, lambda number, images: images.fill(np.nan))
        with pytest.raises(NonFiniteError, match=r"step 5: not finite: .*total_loss"):
            train(tiny_config(tmp_path), workdir)
    assert steps_on_disk(workdir) == [2, 4]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["training.step=5"], "unknown key training.step; did you mean training.steps?"),
        (["data.train={kind: image_folder, path: nowhere/at/all}"], "nowhere/at/all"),
        (["training.batch_size=12"], "training.batch_size 12 is not divisible by 8"),
        (["validation.batch_size=9"], "validation.batch_size 9 is not divisible by 8"),
        (["mesh.model=3"], "does not use the 8 device(s) found exactly"),
        (["perceptual.weights=nowhere"], "perceptual.weights takes none, auto, a folder with both files"),
    ],
)
def test_what_cannot_be_used_is_told(tmp_path, capsys, overrides, expected):
    arguments = ["--config", str(write(tmp_path)), "--workdir", str(tmp_path / "run")]
    for override in overrides:
        arguments += ["--set", override]
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert "error: " in message
    assert expected in message
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_missing_configuration_is_told(tmp_path, capsys):
    write(tmp_path)
    assert main(["--config", str(tmp_path / "tyni.yaml")]) == 2
    assert "nearest in that folder: tiny.yaml" in capsys.readouterr().err


def test_another_model_does_not_continue_a_run(trained, tmp_path):
    wider = with_overrides(trained.config, ["discriminator.channels=8"])
    with pytest.raises(CheckpointError, match=r"trained with discriminator\.channels 4, this run has 8.*workdir"):
        train(wider, trained.workdir)
    with pytest.raises(ValueError, match=r"checkpoint has seed 0, this run has 1"):
        train(with_overrides(trained.config, ["seed=1"]), trained.workdir)
    assert steps_on_disk(trained.workdir) == [4, STEPS]
    assert load_config(trained.workdir / "config.yaml") == trained.config


def test_dry_run_trains_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(TrainIterator, "__next__", None)
    assert main(["--config", str(write(tmp_path)), "--workdir", str(tmp_path / "run"), "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "tiny: dry run on a mesh of {'data': 8, 'fsdp': 1, 'model': 1}" in text
    assert "generator_parameters" in text
    assert "GiB" in text
    assert "TFLOP" in text
    assert not (tmp_path / "run").exists()


def test_dry_run_shows_that_a_split_codebook_is_halved():
    report = dry_run(validate(quantized_by("ibq", shard_codes=True) | {"mesh": {"data": 4, "model": 2}}, "tiny"))
    assert report["codebook_rows_per_device"] == 24 // 2
    assert report["devices"] == 8
    assert min(report[k] for k in ("generator_parameters", "discriminator_parameters", "flops_per_device")) > 0
    assert report["argument_bytes_per_device"] > report["state_bytes_per_device"] > 0
    whole = 4 * 4 * (report["generator_parameters"] + report["discriminator_parameters"])
    assert report["state_bytes_per_device"] < whole, "weights, averages and two moments in float32, less half the codes"
