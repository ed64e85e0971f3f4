"""The PyTorch training command: what it leaves, resume, a clean stop, divergence, several processes, and its errors."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.e2e.conftest import record_batches
from tests.support.tiny import STEPS, tiny_config, write
from voken_common.config.loading import load_config, with_overrides
from voken_common.errors import CheckpointError
from voken_common.training.log import RunLog
from voken_jax.convert import main as convert
from voken_torch.checkpoints.torch import find_step, read, read_meta, steps_in
from voken_torch.reconstruct import main as reconstruct
from voken_torch.tokenizer.api import Tokenizer
from voken_torch.train import main
from voken_torch.training.run import train

ROOT = Path(__file__).resolve().parents[2]


def flat(content, prefix=""):
    if isinstance(content, dict):
        return {k: v for name, item in content.items() for k, v in flat(item, f"{prefix}/{name}").items()}
    return {prefix: content}


def assert_same_content(left, right, tolerance=0.0):
    """Weights, moments, statistics, position: everything but metrics, bit for bit unless a tolerance is given."""
    left, right = flat(left), flat(right)
    assert left.keys() == right.keys()
    for name, value in left.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(value, right[name], rtol=tolerance, atol=tolerance, msg=name)
        elif not name.startswith("/metrics"):
            assert value == right[name], name


@pytest.fixture(scope="module")
def trained_in_torch(tmp_path_factory):
    """Six steps without a break: work directory, metrics, batches."""
    folder = tmp_path_factory.mktemp("torch")
    with pytest.MonkeyPatch.context() as monkeypatch:
        batches = record_batches(monkeypatch)
        metrics = train(tiny_config(folder), folder / "run")
    return folder / "run", metrics, batches


def test_a_run_leaves_what_it_promises(trained_in_torch):
    workdir, metrics, _ = trained_in_torch
    assert {"l1", "psnr", "codebook_usage", "codebook_perplexity"} == metrics.keys()
    assert set(steps_in(workdir / "checkpoints")) == {4, STEPS}
    meta = read_meta(find_step(workdir))
    assert (meta.step, meta.metrics) == (STEPS, metrics)
    assert meta.config == load_config(workdir / "config.yaml")
    assert list((workdir / "tensorboard").glob("events*"))
    with Image.open(workdir / "pictures" / f"reconstructions_{STEPS:08d}.png") as picture:
        assert np.asarray(picture).std() > 0
    assert not list(workdir.rglob("*.part"))


def test_it_is_fed_what_jax_is_fed(trained_in_torch, trained):
    np.testing.assert_array_equal(np.stack(trained_in_torch[2]), np.stack(trained.batches))


def test_stopped_and_resumed_equals_at_once(trained_in_torch, tmp_path, monkeypatch, caplog):
    workdir, expected_metrics, expected_batches = trained_in_torch
    config, own = tiny_config(tmp_path), tmp_path / "run"
    batches, advance = record_batches(monkeypatch), RunLog.advance

    def interrupted(log):
        advance(log)
        if len(batches) == STEPS // 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunLog, "advance", interrupted)
    assert train(config, own) == {}
    assert find_step(own).name == f"{STEPS // 2}.pt"
    caplog.set_level("INFO", "voken")
    assert train(config, own) == expected_metrics
    assert f"continuing at step {STEPS // 2}" in caplog.text
    np.testing.assert_array_equal(np.stack(batches), np.stack(expected_batches))
    assert_same_content(read(find_step(own)), read(find_step(workdir)))
    assert train(config, own) == expected_metrics, "a finished run returns its last validation and does nothing"
    assert len(batches) == STEPS


def test_best_and_missing_steps(trained_in_torch, tmp_path):
    workdir, metrics, _ = trained_in_torch
    assert read_meta(find_step(workdir, "best")).metrics == metrics
    with pytest.raises(CheckpointError, match=r"step 5 is not in .*: the steps there are \[4, 6\]"):
        find_step(workdir, 5)
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*python -m voken_torch.train"):
        find_step(tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "text", "other"])
def test_a_damaged_checkpoint_is_told(trained_in_torch, tmp_path, damage):
    file = tmp_path / "6.pt"
    whole = find_step(trained_in_torch[0]).read_bytes()
    file.write_bytes({"truncated": whole[: len(whole) // 2], "text": b"not a checkpoint"}.get(damage, b""))
    if damage == "other":
        torch.save({"state_dict": {}}, file)
    for reader in (read_meta, read):
        with pytest.raises(CheckpointError, match=r"6\.pt"):
            reader(file)


def test_divergence_stops_and_keeps_the_last_checkpoint_good(tmp_path, monkeypatch, capsys):
    def spoil(number, images):
        if number >= 5:
            images[0, 0, 0, 0] = np.nan

    record_batches(monkeypatch, spoil)
    workdir = tmp_path / "run"
    assert main(["--config", str(write(tmp_path)), "--workdir", str(workdir), "--device", "cpu"]) == 3
    message = capsys.readouterr().err
    assert "error: step 5: not finite: " in message
    assert "last checkpoint is good" in message
    content = read(find_step(workdir))
    assert content["step"] == 4
    assert all(v.isfinite().all() for v in flat(content).values() if isinstance(v, torch.Tensor))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["training.step=5"], "unknown key training.step; did you mean training.steps?"),
        (["data.train={kind: image_folder, path: nowhere/at/all}"], "nowhere/at/all"),
        (["mesh.model=2"], "in PyTorch weights are split over mesh.fsdp alone"),
        (["perceptual.weights=nowhere"], "perceptual.weights takes none, auto, a folder with both files"),
        (["optimizer.gradient_accumulation=3"], "training.batch_size"),
    ],
)
def test_what_cannot_be_used_is_told(tmp_path, capsys, overrides, expected):
    arguments = ["--config", str(write(tmp_path)), "--workdir", str(tmp_path / "run"), "--device", "cpu"]
    for override in overrides:
        arguments += ["--set", override]
    assert main(arguments) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_another_model_does_not_continue_a_run(trained_in_torch):
    workdir = trained_in_torch[0]
    config = load_config(workdir / "config.yaml")
    with pytest.raises(CheckpointError, match=r"trained with discriminator\.channels 4, this run has 8.*workdir"):
        train(with_overrides(config, ["discriminator.channels=8"]), workdir)
    with pytest.raises(ValueError, match=r"checkpoint has seed 0, this run has 1"):
        train(with_overrides(config, ["seed=1"]), workdir)


def run_processes(tmp_path, *options, interrupt=False, folder="run"):
    """Train by torchrun on two processes; `interrupt` sends SIGTERM once a checkpoint is there."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command += ["voken_torch.train", "--config", str(write(tmp_path)), "--workdir", str(tmp_path / folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "--device", "cpu", *options], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )
    if interrupt:
        deadline = time.monotonic() + 60
        while not steps_in(tmp_path / folder / "checkpoints") and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
    return process, process.communicate(timeout=120)[1]


def test_two_processes_train_as_one(tmp_path):
    double = ["training.steps=2", "precision.param_dtype=float64", "precision.compute_dtype=float64"]
    process, errors = run_processes(tmp_path, *(text for value in double for text in ("--set", value)))
    assert process.returncode == 0, errors
    assert errors.count("training on") == 1, "only the first process speaks"
    metrics = train(tiny_config(tmp_path, *double), tmp_path / "one")
    ours, expected = read(find_step(tmp_path / "run")), read(find_step(tmp_path / "one"))
    assert ours["metrics"] == pytest.approx(metrics, rel=1e-6)
    for item in ("data", "generator", "generator_ema", "rest"):
        assert_same_content(ours[item], expected[item], 1e-7)


@pytest.mark.slow
def test_sigterm_stops_all_processes_at_one_step(tmp_path):
    _, errors = run_processes(tmp_path, "--set", "training.steps=10000", interrupt=True)
    stopped = max(steps_in(tmp_path / "run" / "checkpoints"))
    assert f"stopped at step {stopped}, checkpoint written" in errors
    train(tiny_config(tmp_path, f"training.steps={stopped + 2}"), tmp_path / "run")
    assert max(steps_in(tmp_path / "run" / "checkpoints")) == stopped + 2, "continued, and by one process"


def test_tokenizer_and_reconstruction(trained_in_torch, tmp_path, capsys):
    workdir, _, batches = trained_in_torch
    tokenizer = Tokenizer.load(workdir)
    images = torch.from_numpy(batches[0][:2]).movedim(-1, 1)
    ids = tokenizer.encode(images)
    assert (ids.shape, ids.dtype) == ((2, 8, 8), torch.int32)
    decoded = tokenizer.decode(ids)
    assert decoded.abs().max() <= 1
    torch.testing.assert_close(decoded, tokenizer.reconstruct(images), rtol=0, atol=0)
    every = torch.arange(256).reshape(4, 8, 8)
    assert torch.equal(tokenizer.ids_of(tokenizer.codes(every)), every.int())
    assert convert([str(workdir), str(tmp_path / "shared.safetensors")]) == 0
    assert torch.equal(Tokenizer.load(tmp_path / "shared.safetensors").decode(ids), decoded)
    raw = Tokenizer.load(workdir, weights="raw")
    assert not torch.equal(raw.decode(ids), decoded)
    assert tokenizer.reconstruct(torch.zeros(1, 3, 19, 23)).shape == (1, 3, 19, 23)

    Image.fromarray(np.random.default_rng(0).integers(0, 256, (19, 23, 3), np.uint8)).save(tmp_path / "a.png")
    arguments = ["--checkpoint", str(workdir), "--input", str(tmp_path / "a.png"), "--output", str(tmp_path / "out")]
    assert reconstruct([*arguments, "--device", "cpu"]) == 0
    assert "mean of 1 image(s)" in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "a.png.reconstruction.png") as image:
        assert image.size == (23, 19)
    shutil.rmtree(tmp_path / "out")
    assert reconstruct([*arguments, "--device", "cpu", "--step", "3"]) == 2
    assert "step 3 is not in" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (torch.zeros(2, 16, 16), r"shape \(2, 16, 16\), expected \(3, H, W\) or \(B, 3, H, W\), channels first"),
        (torch.zeros(1, 16, 16, 3), r"shape \(1, 16, 16, 3\), expected"),
        (
            torch.zeros(1, 3, 16, 16, dtype=torch.int32),
            r"images are torch.int32, expected uint8 or floats in \[-1, 1\]",
        ),
        (torch.zeros(1, 3, 19, 16), r"images are 19 x 16: both sides must be multiples of 2; .* `reconstruct` pads"),
    ],
)
def test_images_that_do_not_fit(trained_in_torch, images, expected):
    with pytest.raises(ValueError, match=expected):
        Tokenizer.load(trained_in_torch[0]).encode(images)


@pytest.mark.parametrize("ids", [torch.full((1, 8, 8), 256), torch.full((1, 8, 8), -1), torch.zeros(1, 8, 8)])
def test_ids_that_do_not_fit(trained_in_torch, ids):
    with pytest.raises(ValueError, match=r"ids (run from .*another tokenizer|are float32 of shape)"):
        Tokenizer.load(trained_in_torch[0]).decode(ids)


def test_training_without_jax_installed(tmp_path):
    """The whole command where importing JAX fails, as in an environment that never had it."""
    (tmp_path / "blocked").mkdir()
    for name in ("jax", "jaxlib", "flax", "optax", "orbax", "clu"):
        (tmp_path / "blocked" / f"{name}.py").write_text(f"raise ImportError('{name} is blocked')")
    command = [sys.executable, "-m", "voken_torch.train", "--config", str(write(tmp_path)), "--device", "cpu"]
    command += ["--workdir", str(tmp_path / "run"), "--set", "training.steps=2"]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'blocked'}{os.pathsep}{ROOT}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(steps_in(tmp_path / "run" / "checkpoints")) == {2}
