"""What a run must survive in both frameworks: stops between logged steps, batches that are not finite, lost bytes."""

import contextlib
import functools
import importlib
import json
import os
import shutil
import signal
import zipfile

import numpy as np
import pytest

from tests.e2e.conftest import record_batches
from tests.e2e.test_torch_train import assert_same_content
from tests.e2e.test_train import assert_same_state, restored
from tests.support.tiny import quantized_by, write
from tests.support.tiny_generator import generator_config, write_shards
from voken_common.checkpoints.steps import Progress
from voken_common.config.loading import load_config
from voken_common.data.errors import ReadError
from voken_common.data.pipeline import TrainIterator
from voken_common.data.tokens.pipeline import TokenIterator
from voken_common.errors import CheckpointError, DamagedError, NonFiniteError
from voken_common.training.log import RunLog
from voken_jax.checkpoints import orbax as jax_checkpoint
from voken_jax.checkpoints.orbax import find_step as jax_step
from voken_jax.conversion.orbax_step import _read_item
from voken_jax.tokenizer.api import Tokenizer
from voken_jax.training import run as jax_trainer
from voken_torch.checkpoints import torch as torch_checkpoint
from voken_torch.tokenizer.api import Tokenizer as TorchTokenizer
from voken_torch.training import run as torch_trainer

TRAINERS = {"jax": jax_trainer, "torch": torch_trainer}
CHECKPOINTS = {"jax": jax_checkpoint, "torch": torch_checkpoint}
SMALL = (
    "data.validation=null",
    "training.log_every=4",
    "checkpoint.every=3",
    "checkpoint.keep_best=0",
    "health.max_skipped=2",
)
FRAMEWORKS = pytest.mark.parametrize("framework", ["jax", "torch"])
SLOW_IN_JAX = pytest.mark.parametrize("framework", [pytest.param("jax", marks=pytest.mark.slow), "torch"])


def small(folder):
    """One configuration for all, so that it is compiled once."""
    return load_config(write(folder, quantized_by("vq")), SMALL)


@contextlib.contextmanager
def logging_to(logged):
    """Collect (step, values) of training metrics."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, "training", lambda log, step, values, shown: logged.append((step, dict(values))))
        yield


def assert_same_end(framework, left, right, config):
    if framework == "jax":
        (a, position), (b, expected) = restored(left, config), restored(right, config)
        assert_same_state(a, b)
        assert position == expected
    else:
        find, read = torch_checkpoint.find_step, torch_checkpoint.read
        left, right = (dict(read(find(workdir))) for workdir in (left, right))
        for content in (left, right):
            del content["config"], content["progress"]
        assert_same_content(left, right)


@SLOW_IN_JAX
def test_means_go_on_where_a_stop_interrupted_them(framework, undisturbed, tmp_path, monkeypatch):
    expected, config, whole = undisturbed(framework)
    parts, taken, advance, train = [], [], RunLog.advance, TRAINERS[framework].train

    def interrupted(log):
        advance(log)
        taken.append(1)
        if len(taken) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch, logging_to(parts):
        patch.setattr(RunLog, "advance", interrupted)
        assert train(config, tmp_path / "parts") == {}
        assert parts == [], "no mean over a part of the steps is logged"
        progress = CHECKPOINTS[framework].read_meta(CHECKPOINTS[framework].find_step(tmp_path / "parts")).progress
        assert {count for _, count, _ in progress.averages.values()} == {2}
        train(config, tmp_path / "parts")
    assert [step for step, _ in whole] == [4, 6]
    assert parts == whole
    assert_same_end(framework, tmp_path / "parts", expected, config)
    assert json.loads((tmp_path / "parts" / "heartbeat.json").read_text())["phase"] == "finished"


@SLOW_IN_JAX
def test_data_that_fails_for_good_costs_no_step(framework, undisturbed, tmp_path, monkeypatch):
    expected, config, _ = undisturbed(framework)
    train, original, workdir = TRAINERS[framework].train, TrainIterator.__next__, tmp_path / "run"

    def failing(iterator):
        if iterator.position == 2 * config.training.batch_size:
            iterator.close()
            raise ReadError("the store is gone")
        return original(iterator)

    with monkeypatch.context() as patch:
        patch.setattr(TrainIterator, "__next__", failing)
        with pytest.raises(ReadError, match="the store is gone"):
            train(config, workdir)
    checkpoint = CHECKPOINTS[framework]
    assert checkpoint.read_meta(checkpoint.find_step(workdir)).step == 2
    assert json.loads((workdir / "heartbeat.json").read_text())["phase"] == "failed"
    train(config, workdir)
    assert_same_end(framework, workdir, expected, config)


@SLOW_IN_JAX
def test_skipped_batches_are_as_if_never_drawn(framework, tmp_path, monkeypatch, caplog):
    config, train = small(tmp_path), TRAINERS[framework].train
    original, spoiled, logged = TrainIterator.__next__, (2, 5), []

    def without(iterator):
        batch = original(iterator)
        without.count += 1
        return without(iterator) if without.count in spoiled else batch

    with monkeypatch.context() as patch, logging_to(logged):
        without.count = 0
        patch.setattr(TrainIterator, "__next__", without)
        train(config, tmp_path / "without")
    expected, logged = logged, []
    with monkeypatch.context() as patch, logging_to(logged):
        record_batches(patch, lambda number, images: images.fill(np.nan) if number in spoiled else None)
        train(config, tmp_path / "skipped")
    assert logged == expected
    assert_same_end(framework, tmp_path / "skipped", tmp_path / "without", config)
    assert "step 2: not finite: " in caplog.text
    assert "(1 of at most 2) and kept in " in caplog.text
    assert "step 4: not finite: " in caplog.text, "the fifth batch meets the step after the third"
    assert {p.name for p in (tmp_path / "skipped").glob("*.npz")} == {"failed_batch_2.npz", "failed_batch_4.npz"}
    meta = CHECKPOINTS[framework].read_meta(CHECKPOINTS[framework].find_step(tmp_path / "skipped"))
    assert meta.progress == Progress({}, 2)


def take_from(patch, kind, change):
    """What iterators of a kind give goes through `change(number, batch)`, which returns None for one nobody gets."""
    original, taken = kind.__next__, []

    def take(iterator):
        batch = original(iterator)
        taken.append(1)
        batch = change(len(taken), batch)
        return take(iterator) if batch is None else batch

    patch.setattr(kind, "__next__", take)


@SLOW_IN_JAX
def test_skipped_batches_of_a_generator_are_as_if_never_drawn(framework, tmp_path, monkeypatch, caplog):
    """Tokens cannot be NaN, so the loss of a batch of the last code alone is made infinite."""
    config = generator_config(
        write_shards(tmp_path, [256]),
        data={"validation": None},
        checkpoint={"every": 3, "keep_best": 0},
        health={"max_skipped": 2},
    )
    step, train = importlib.import_module(f"voken_{framework}.generator.step"), TRAINERS[framework].train
    losses, spoiled = step.token_losses, (2, 5)

    def infinite(logits, tokens):
        total, metrics = losses(logits, tokens)
        fine = (tokens != 255).any()
        return total / fine, {**metrics, "loss": metrics["loss"] / fine}

    monkeypatch.setattr(step, "token_losses", infinite)
    logged = {"without": [], "skipped": []}
    for name, spoil in (("without", lambda batch: None), ("skipped", lambda b: b | {"tokens": 0 * b["tokens"] + 255})):
        with monkeypatch.context() as patch, logging_to(logged[name]):
            take_from(patch, TokenIterator, lambda n, batch, spoil=spoil: spoil(batch) if n in spoiled else batch)
            train(config, tmp_path / name)
    assert logged["skipped"] == logged["without"]
    assert [step for step, _ in logged["skipped"]] == [3, 6]
    if framework == "torch":
        assert_same_end(framework, tmp_path / "skipped", tmp_path / "without", config)
    else:
        ends = [jax_step(tmp_path / name) for name in ("skipped", "without")]
        assert jax_checkpoint.read_data(ends[0]) == jax_checkpoint.read_data(ends[1])
        for item in ("generator", "rest"):
            assert_same_state(*(_read_item(end / item) for end in ends))
    assert "step 2: not finite: grad_norm, loss. " in caplog.text
    assert {p.name for p in (tmp_path / "skipped").glob("*.npz")} == {"failed_batch_2.npz", "failed_batch_4.npz"}
    checkpoints = CHECKPOINTS[framework]
    assert checkpoints.read_meta(checkpoints.find_step(tmp_path / "skipped")).progress == Progress({}, 2)
    with monkeypatch.context() as patch:
        take_from(patch, TokenIterator, lambda n, b: b | {"tokens": 0 * b["tokens"] + 255} if n < 4 else b)
        with pytest.raises(NonFiniteError, match=r"step 1: .*after 2 skipped batch.*failed_batch_1.npz"):
            train(config, tmp_path / "stopped")


@FRAMEWORKS
def test_one_more_than_allowed_stops_and_can_be_replayed(framework, tmp_path, monkeypatch, capsys):
    config, workdir = small(tmp_path), tmp_path / "run"
    with monkeypatch.context() as patch:
        record_batches(patch, lambda number, images: images.fill(np.nan) if number in (1, 2, 6) else None)
        with pytest.raises(NonFiniteError, match=r"step 4: .*after 2 skipped batch.*failed_batch_4.npz"):
            TRAINERS[framework].train(config, workdir)
    assert json.loads((workdir / "heartbeat.json").read_text())["phase"] == "failed"
    metrics = TRAINERS[framework].replay(config, workdir, workdir / "failed_batch_4.npz")
    assert any(not np.isfinite(value) for value in metrics.values())
    assert "it meets the weights of step 3, the newest checkpoint" in capsys.readouterr().out
    with pytest.raises(CheckpointError, match="cannot be replayed"):
        TRAINERS[framework].replay(config, workdir, workdir / "config.yaml")
    with pytest.raises(CheckpointError, match="holds no checkpoint, on whose weights"):
        TRAINERS[framework].replay(config, tmp_path / "other", workdir / "failed_batch_4.npz")


@SLOW_IN_JAX
def test_damaged_steps_are_told_set_aside_and_written_again(framework, undisturbed, tmp_path, caplog):
    source, config, _ = undisturbed(framework)
    workdir = shutil.copytree(source, tmp_path / "run")
    newest = jax_step(workdir) if framework == "jax" else torch_checkpoint.find_step(workdir)
    data = newest if newest.is_file() else max(newest.glob("generator_ema/**/*"), key=lambda p: p.stat().st_size)
    content = bytearray(data.read_bytes())
    position = len(content) // 2
    if newest.is_file():
        # Between the arrays of an archive lies padding, in which a bit means nothing.
        with zipfile.ZipFile(newest) as archive:
            arrays = [entry for entry in archive.infolist() if "/data/" in entry.filename]
            largest = max(arrays, key=lambda entry: entry.file_size)
        position = largest.header_offset + largest.file_size // 2
    content[position] ^= 0x40
    data.write_bytes(content)

    tokenizer = {"jax": Tokenizer, "torch": TorchTokenizer}[framework]
    caplog.clear()
    assert tokenizer.load(workdir) is not None
    assert "step 6 is damaged: " in caplog.text
    assert "Step 3 is used instead" in caplog.text
    assert tokenizer.load(workdir, verify=False) is not None
    for place in (workdir, newest):
        with pytest.raises(DamagedError, match=r"6(\.pt)? is damaged: .*another checksum.*Restore it from a copy"):
            tokenizer.load(place, step=6)
    if framework == "jax":
        with pytest.raises(DamagedError, match=r"damaged array\(s\): generator_ema/\S+"):
            tokenizer.load(workdir, step=6)
        assert Tokenizer.load(workdir, step=6, weights="raw") is not None, "those weights are good"

    caplog.set_level("INFO", "voken")
    TRAINERS[framework].train(config, workdir, profile=1)
    assert "continuing at step 3" in caplog.text
    assert "no trace was made: the run had no more than 3 steps left" in caplog.text
    assert (workdir / "damaged_checkpoints" / newest.name).exists()
    assert_same_end(framework, workdir, source, config)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """framework -> (work directory, configuration, logged means) of six steps without a break, one of them traced."""

    @functools.cache
    def run(framework):
        folder = tmp_path_factory.mktemp(framework)
        config, logged = small(folder), []
        with logging_to(logged):
            TRAINERS[framework].train(config, folder / "run", profile=1)
        return folder / "run", config, logged

    return run


def test_profile_leaves_a_trace(undisturbed):
    assert list((undisturbed("jax")[0] / "profile").rglob("*.xplane.pb"))
    assert json.loads((undisturbed("torch")[0] / "profile" / "trace_0.json").read_text())["traceEvents"]


def test_a_held_directory_is_told_by_the_command(tmp_path, capsys):
    from voken_common.checkpoints.lock import RunLock
    from voken_torch.train import main

    with RunLock(tmp_path / "run"):
        arguments = ["--config", str(write(tmp_path)), "--workdir", str(tmp_path / "run"), "--device", "cpu"]
        assert main(arguments) == 2
    assert f"is in use by another run (process {os.getpid()} on " in capsys.readouterr().err
