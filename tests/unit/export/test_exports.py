"""Exported programs give the ids and pixels of the tokenizer, at sizes that were not traced, without voken."""

import subprocess
import sys

import jax
import numpy as np
import pytest
import torch

import voken
from tests.support.tiny import TINY, quantized_by
from voken_common.config.loading import validate
from voken_common.evaluation.exports import compare, photographs, table
from voken_jax.export import job as jax_jobs
from voken_jax.tokenizer import api as jax_api
from voken_jax.tokenizer.state import build_autoencoder
from voken_torch.export import job as torch_jobs
from voken_torch.models.autoencoder import Autoencoder
from voken_torch.tokenizer import api as torch_api

KINDS = {"lfq": TINY, "ibq": quantized_by("ibq"), "vq": quantized_by("vq", l2_normalize=True)}


def torch_tokenizer(kind):
    config = validate(KINDS[kind], "test")
    torch.manual_seed(0)
    return torch_api.Tokenizer(config, dict(Autoencoder(config.model, config.quantizer).state_dict()))


def images_of(tokenizer, rows, columns):
    size = (2, rows * tokenizer.downsampling, columns * tokenizer.downsampling, 3)
    return np.random.default_rng(0).uniform(-1, 1, size).astype(np.float32)


def assert_same(job, tmp_path, suffix, tolerance):
    images = images_of(job, 5, 7)
    ids = job.encode(images)
    encoder, sizes = job.export("encoder", tmp_path / f"encoder{suffix}")
    assert "multiples" in sizes
    np.testing.assert_array_equal(encoder(images), ids)
    decoder, _ = job.export("decoder", tmp_path / f"decoder{suffix}")
    np.testing.assert_allclose(decoder(ids), job.decode(ids), atol=tolerance)
    assert len({path.name for path in tmp_path.iterdir()}) == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_stablehlo(tmp_path, kind):
    config = validate(KINDS[kind], "test")
    weights, _ = build_autoencoder(config).init(jax.random.key(0))
    assert_same(jax_jobs.Job(jax_api.Tokenizer(config, weights)), tmp_path, ".stablehlo", 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_torch_export(tmp_path, kind):
    assert_same(torch_jobs.Job(torch_tokenizer(kind), "torch-export"), tmp_path, ".pt2", 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_onnx(tmp_path, kind):
    assert_same(torch_jobs.Job(torch_tokenizer(kind), "onnx"), tmp_path, ".onnx", 1e-4)


def test_a_stablehlo_file_runs_without_voken(tmp_path):
    config = validate(TINY, "test")
    weights, _ = build_autoencoder(config).init(jax.random.key(0))
    job = jax_jobs.Job(jax_api.Tokenizer(config, weights))
    images = images_of(job, 2, 3)
    job.export("encoder", tmp_path / "encoder.stablehlo")
    np.save(tmp_path / "images.npy", images)
    code = (
        "import sys, numpy as np\nfrom jax import export\n"
        "program = export.deserialize(bytearray(open('encoder.stablehlo', 'rb').read()))\n"
        "np.save('ids.npy', np.asarray(program.call(np.load('images.npy'))))\n"
        "assert not any(name.startswith('voken') for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "ids.npy"), job.encode(images))


class Echo:
    """A job whose exported decoder is off by a little."""

    downsampling = 4

    def __init__(self, fault):
        self.fault = fault

    def encode(self, images):
        return (images[:, ::4, ::4, 0] * 100).astype(np.int64)

    def decode(self, ids):
        return np.repeat((ids / 100)[..., None], 3, -1)

    def export(self, part, target):
        target.write_bytes(bytes(2**20))
        fault = self.fault
        if part == "encoder":
            return lambda images: self.encode(images) + (fault > 0), "any"
        return lambda ids: self.decode(ids) + fault, "any"


@pytest.mark.parametrize(("fault", "agrees"), [(0.0, True), (0.5, False)])
def test_a_difference_is_seen(tmp_path, fault, agrees):
    rows = compare(Echo(fault), ("encoder", "decoder"), tmp_path, ".bin")
    assert [row.agrees for row in rows] == [agrees, agrees]
    assert rows[1].difference == pytest.approx(fault)
    assert "encoder.bin" in table(rows)[1]


def test_photographs_fill_whole_tokens():
    assert photographs(16).shape == (4, 256, 256, 3)
    assert photographs(8).shape == (4, 128, 128, 3)


def test_the_command_refuses_a_part_of_safetensors(tmp_path):
    command = ["export", "nothing", "--format", "safetensors", "--part", "encoder", "--output", str(tmp_path)]
    assert voken.main(command) == 2
    assert list(tmp_path.iterdir()) == []
