"""A run that changes frameworks half way: five steps in one, converted, five in the other, as ten in either."""

import jax
import pytest
import torch

from tests.support.tiny import TINY, quantized_by, write
from tests.support.tiny_generator import ADAPTIVE, FACTORIZED, generator_config, write_shards
from tests.support.tiny_video import video_run, write_video
from voken_common.config.loading import load_config
from voken_jax.convert import main as convert
from voken_jax.training import run as jax_trainer
from voken_torch.checkpoints.torch import find_step, read
from voken_torch.training.run import train as train_in_torch

HALF, WHOLE = 5, 10
RUN = {
    "training": {"batch_size": 8, "steps": WHOLE, "log_every": WHOLE},
    "validation": {"every": 100, "batch_size": 8, "pictures": 2},
    "checkpoint": {"every": HALF, "keep_last": 2},
    "precision": {"param_dtype": "float64", "compute_dtype": "float64"},
    # A loss that both players and every average take part in, and a schedule that depends on the step.
    "optimizer": {"learning_rate": 1e-3, "ema_decay": 0.9, "schedule": {"kind": "cos", "warmup_steps": 3}},
    # One device in JAX, one process in PyTorch.
    "statistics_scope": "global",
}


def assert_same_run(found, expected):
    """Weights, averages, moments, statistics and position of two PyTorch checkpoints."""
    flat, reference = _flat(found), _flat(expected)
    assert flat.keys() == reference.keys()
    for name, value in reference.items():
        if isinstance(value, torch.Tensor):
            # The absolute part is for gradients that vanish but for rounding, such as those of biases before a norm.
            allowed = 1e-8 * float(value.double().abs().max()) + 1e-12
            error = float((flat[name].double() - value.double()).abs().max())
            assert error <= allowed, f"{name}: off by {error:.1e}, allowed {allowed:.1e}"
        elif not name.startswith(("/metrics", "/config")):
            assert flat[name] == value, name


def _flat(content, prefix=""):
    if isinstance(content, dict):
        return {k: v for name, item in content.items() for k, v in _flat(item, f"{prefix}/{name}").items()}
    return {prefix: content}


NO_DROPOUT = dict.fromkeys(("token_dropout", "residual_dropout", "feed_forward_dropout", "label_dropout"), 0.0)
GENERATOR_RUN = {key: RUN[key] for key in ("training", "validation", "checkpoint", "precision")}
GENERATOR_RUN |= {"model": NO_DROPOUT, "optimizer": {"ema_decay": 0.9, "gradient_clip": 1.0, "decay_all": False}}
SLOW = ("ibq", "video", "factorized", "adaptive")


@pytest.fixture(params=[pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in ("lfq", *SLOW)])
def config(request, tmp_path):
    if request.param in ("factorized", "adaptive"):
        kind = FACTORIZED if request.param == "factorized" else ADAPTIVE
        return generator_config(write_shards(tmp_path, kind["vocabularies"]), kind, **GENERATOR_RUN)
    if request.param == "video":
        (tmp_path / "videos").mkdir()
        for number in range(3):
            write_video(tmp_path / "videos" / f"{number}.mp4", 9 + number)
        return load_config(write(tmp_path, video_run(tmp_path / "videos", **RUN)))
    mapping = (TINY if request.param == "lfq" else quantized_by("ibq")) | RUN
    return load_config(write(tmp_path, mapping))


def to(place, source, target, *options):
    assert convert([str(source), str(target), "--to", place, *options]) == 0


def test_half_in_each_equals_the_whole_in_either(config, tmp_path, x64):
    devices = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(jax, "devices", lambda *_: devices)
        jax_trainer.train(config, tmp_path / "jax")
        to("torch", tmp_path / "jax", tmp_path / "jax_as_torch")
        to("torch", tmp_path / "jax", tmp_path / "continued_in_torch", "--step", str(HALF))
        train_in_torch(config, tmp_path / "continued_in_torch")

        train_in_torch(config, tmp_path / "torch")
        to("orbax", tmp_path / "torch", tmp_path / "continued_in_jax", "--step", str(HALF))
        jax_trainer.train(config, tmp_path / "continued_in_jax")
        to("torch", tmp_path / "continued_in_jax", tmp_path / "jax_again_as_torch")

    runs = {
        name: read(find_step(tmp_path / name))
        for name in ("jax_as_torch", "continued_in_torch", "torch", "jax_again_as_torch")
    }
    assert {run["step"] for run in runs.values()} == {WHOLE}
    assert_same_run(runs["continued_in_torch"], runs["jax_as_torch"])
    assert_same_run(runs["jax_again_as_torch"], runs["torch"])
    half = read(find_step(tmp_path / "torch", HALF))["generator"]
    moved = max(float((weight - half[name]).abs().max()) for name, weight in runs["torch"]["generator"].items())
    assert moved > 1e-4, "the second half must have trained"
