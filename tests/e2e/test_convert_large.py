"""Every published image tokenizer, and a generator with its own, at full size, to Orbax and back: complete,
bit-identical, and in bounded memory.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from voken_common.published.models import MODELS, has_config

ROOT = Path(__file__).resolve().parents[2]
TOKENIZERS = [model for model in MODELS if model.family == "image tokenizer" and has_config(model)]
PEAK = 2.5
"""Bytes of memory per byte of the checkpoint."""

SEED = """
import json, sys, torch
manifest, target = sys.argv[1:]
torch.manual_seed(0)
draw = lambda key, shape: torch.tensor(0) if key.endswith("num_batches_tracked") else 0.02 * torch.randn(shape)
weights = {key: draw(key, shape) for key, shape in json.load(open(manifest)).items()}
torch.save({"state_dict": weights, "global_step": 7, "epoch": 0}, target)
"""
CONVERT = """
import resource, sys
from voken_jax.convert import main
status = main(sys.argv[1:])
# Linux counts in kilobytes, macOS in bytes.
unit = 1 if sys.platform == "darwin" else 1024
print("PEAK", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
sys.exit(status)
"""


def run(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def size(path):
    """Bytes of a checkpoint, and of the tokenizer beside it."""
    beside = path.with_name(f"{path.stem}_tokenizer{path.suffix}")
    return own_size(path) + (own_size(beside) if beside.exists() else 0)


def own_size(path):
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def convert(source, target, *options):
    said = run(CONVERT, source, target, *options)
    peak, whole = int(said.split("PEAK ")[1]), max(size(source), size(target))
    print(f"{source.name} -> {target.name}: {whole / 1e6:.0f} MB, peak {peak / 1e6:.0f} MB, {peak / whole:.2f} times")
    assert peak < PEAK * whole


@pytest.mark.large
@pytest.mark.parametrize("model", TOKENIZERS, ids=lambda model: model.name)
def test_there_and_back(tmp_path, model):
    manifest = ROOT / "tests" / "manifests" / model.manifest
    source, back = tmp_path / "source.ckpt", tmp_path / "back.ckpt"
    try:
        run(SEED, manifest, source)
        convert(source, tmp_path / "orbax", "--config", model.name)
        convert(tmp_path / "orbax", tmp_path / "step.pt")
        convert(tmp_path / "step.pt", back)
        before, after = (torch.load(path, weights_only=True, mmap=True)["state_dict"] for path in (source, back))
        expected = {key for key in json.loads(manifest.read_text()) if not key.startswith("loss.")}
        expected = {key for key in expected if not key.startswith("model_ema.lossdiscriminator")}
        assert after.keys() == expected
        for key in expected - {"model_ema.decay", "model_ema.num_updates"}:
            assert torch.equal(before[key], after[key]), key
    finally:
        # A gigabyte each; pytest would keep them.
        shutil.rmtree(tmp_path)


@pytest.mark.large
@pytest.mark.parametrize("name", ["IBQ__imagenet_conditional_llama_B", "Open-MAGVIT2__imagenet_conditional_llama_B"])
def test_a_generator_there_and_back(tmp_path, name):
    """Found by its weights alone, its tokenizer too."""
    manifest = ROOT / "tests" / "manifests" / f"{name}.json"
    source, back = tmp_path / "source.ckpt", tmp_path / "back.ckpt"
    try:
        run(SEED, manifest, source)
        convert(source, tmp_path / "orbax")
        convert(tmp_path / "orbax", tmp_path / "step.pt")
        convert(tmp_path / "step.pt", back)
        before, after = (torch.load(path, weights_only=True, mmap=True)["state_dict"] for path in (source, back))
        assert after.keys() == json.loads(manifest.read_text()).keys()
        for key, tensor in before.items():
            assert torch.equal(tensor, after[key]), key
    finally:
        shutil.rmtree(tmp_path)
