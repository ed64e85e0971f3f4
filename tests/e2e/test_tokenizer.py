"""The public Tokenizer and the reconstruction command, on a trained work directory and on random codebooks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from tests.support.tiny import STEPS, quantized_by
from voken_common.checkpoints.weight_names import NameMismatch
from voken_common.config.loading import validate
from voken_common.errors import CheckpointError
from voken_jax.reconstruct import main
from voken_jax.tokenizer.api import Tokenizer
from voken_jax.tokenizer.state import build_autoencoder

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tokenizer(trained):
    return Tokenizer.load(trained.workdir)


def images_of(*shape):
    return np.random.default_rng(0).uniform(-1, 1, (*shape, 3)).astype(np.float32)


def random_tokenizer(kind, **settings):
    """Random weights; normal codes, since fresh ones are nearly 0."""
    config = validate(quantized_by(kind, **settings), kind)
    weights, _ = jax.jit(build_autoencoder(config).init)(jax.random.key(0))
    name = "quantize.embedding.embedding"
    weights[name] = jax.random.normal(jax.random.key(1), weights[name].shape)
    return Tokenizer(config, weights)


def test_encode_decode_reconstruct(tokenizer, trained):
    images = trained.batches[0][:2]
    ids = tokenizer.encode(images)
    assert (ids.shape, ids.dtype) == ((2, 8, 8), np.int32)
    assert 0 <= int(ids.min()) <= int(ids.max()) < tokenizer.codebook_size == 256
    assert tokenizer.downsampling == 2
    decoded = np.asarray(tokenizer.decode(ids))
    assert decoded.shape == images.shape
    assert np.abs(decoded).max() <= 1
    np.testing.assert_array_equal(decoded, tokenizer.reconstruct(images))
    np.testing.assert_array_equal(tokenizer.decode(np.asarray(ids, np.uint16)), decoded)


def test_odd_sizes_keep_their_size(tokenizer):
    assert tokenizer.reconstruct(images_of(1, 19, 23)).shape == (1, 19, 23, 3)


def test_ema_and_raw_weights_differ(tokenizer, trained):
    raw = Tokenizer.load(trained.workdir, step=STEPS, weights="raw")
    name = "decoder.conv_out.kernel"
    assert np.abs(raw._weights[name] - tokenizer._weights[name]).max() > 0
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        Tokenizer.load(trained.workdir / "pictures")


def test_every_lfq_code_and_id_are_inverses(tokenizer):
    ids = np.arange(256).reshape(4, 8, 8)
    np.testing.assert_array_equal(tokenizer.ids_of(tokenizer.codes(ids)), ids)


@pytest.mark.parametrize(("kind", "settings"), [("ibq", {}), ("vq", {}), ("vq", {"l2_normalize": True})])
def test_every_learned_code_and_id_are_inverses(kind, settings):
    tokenizer = random_tokenizer(kind, codes=256, **settings)
    ids = np.arange(256).reshape(4, 8, 8)
    codes = tokenizer.codes(ids)
    assert codes.shape == (4, 8, 8, 8)
    np.testing.assert_array_equal(tokenizer.ids_of(codes), ids)
    images = images_of(1, 8, 8)
    found = tokenizer.encode(images)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(tokenizer.decode(found), tokenizer.reconstruct(images))


def test_fresh_codes_near_zero_are_told_apart():
    config = validate(quantized_by("vq", codes=1024), "vq")
    weights, _ = jax.jit(build_autoencoder(config).init)(jax.random.key(0))
    tokenizer = Tokenizer(config, weights)
    ids = np.arange(1024).reshape(1, 32, 32)
    np.testing.assert_array_equal(tokenizer.ids_of(tokenizer.codes(ids)), ids)


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (images_of(16, 16)[..., :2], r"shape \(16, 16, 2\), expected \(H, W, 3\) or \(B, H, W, 3\), channels last"),
        (images_of(1, 16, 16).transpose(0, 3, 1, 2), r"shape \(1, 3, 16, 16\), expected"),
        (images_of(1, 0, 16), r"shape \(1, 0, 16, 3\), expected"),
        (np.zeros((1, 16, 16, 3), np.int32), r"images are int32, expected uint8 or floats in \[-1, 1\]"),
        (images_of(1, 19, 16), r"images are 19 x 16: both sides must be multiples of 2; .* `reconstruct` pads"),
    ],
)
def test_images_that_do_not_fit(tokenizer, images, expected):
    with pytest.raises(ValueError, match=expected):
        tokenizer.encode(images)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (np.zeros(8, np.int32), r"ids are int32 of shape \(8,\), expected integers \(B, h, w\) or \(h, w\)"),
        (np.zeros((1, 8, 8), np.float32), r"ids are float32 of shape"),
        (np.full((1, 8, 8), 256), "ids run from 256 to 256, expected 0 to 255: they belong to another tokenizer"),
        (np.full((1, 8, 8), -1), "ids run from -1 to -1"),
    ],
)
def test_ids_that_do_not_fit(tokenizer, ids, expected):
    for method in (tokenizer.decode, tokenizer.codes):
        with pytest.raises(ValueError, match=expected):
            method(ids)


def test_weights_of_another_network(tokenizer):
    weights = dict(tokenizer._weights)
    weights.pop("decoder.conv_out.kernel")
    with pytest.raises(NameMismatch, match=r"decoder\.conv_out\.kernel"):
        Tokenizer(tokenizer.config, weights)


@pytest.fixture
def folder(tmp_path):
    """Images of different sizes, two with one stem, one of them grey and in a sub-folder."""
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    bytes_of = lambda *shape: np.random.default_rng(0).integers(0, 256, shape, np.uint8)  # noqa: E731
    Image.fromarray(bytes_of(16, 16, 3)).save(folder / "a.png")
    Image.fromarray(bytes_of(19, 23, 3)).save(folder / "a.bmp")
    Image.fromarray(bytes_of(16, 18)).save(folder / "sub" / "b.PNG")
    (folder / "notes.txt").write_text("not an image")
    return folder


def test_reconstruct_a_folder(trained, folder, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = ["--checkpoint", str(trained.workdir), "--input", str(folder), "--output", str(output)]
    assert main(arguments) == 0
    sizes = {"a.png": (16, 16), "a.bmp": (19, 23), "sub__b.PNG": (16, 18)}
    for name, (height, width) in sizes.items():
        with Image.open(output / f"{name}.reconstruction.png") as image:
            assert image.size == (width, height)
    with np.load(output / "ids.npz") as ids:
        assert {name: ids[name].shape for name in ids} == {
            name: (-(-height // 2), -(-width // 2)) for name, (height, width) in sizes.items()
        }
        assert {ids[name].dtype for name in ids} == {np.dtype(np.int32)}
    psnr = json.loads((output / "psnr.json").read_text())
    assert psnr["images"].keys() == sizes.keys()
    assert psnr["mean"] == pytest.approx(np.mean(list(psnr["images"].values())))
    assert 0 < psnr["mean"] < 60
    with Image.open(output / "side_by_side.png") as picture:
        assert min(picture.size) > 32
    assert "mean of 3 image(s)" in capsys.readouterr().out


def test_reconstruct_one_file_of_one_step(trained, folder, tmp_path):
    step = trained.workdir / "checkpoints" / str(STEPS)
    output = tmp_path / "out"
    assert main(["--checkpoint", str(step), "--input", str(folder / "a.png"), "--output", str(output)]) == 0
    assert {p.name for p in output.iterdir()} == {
        *("a.png.reconstruction.png", "side_by_side.png", "ids.npz", "psnr.json")
    }


def test_reconstruct_says_what_is_missing(trained, folder, tmp_path, capsys):
    def message(**options):
        defaults = {"checkpoint": trained.workdir, "input": folder, "output": tmp_path / "out"}
        pairs = [(f"--{name}", str(value)) for name, value in (defaults | options).items()]
        assert main([text for pair in pairs for text in pair]) == 2
        return capsys.readouterr().err

    assert "nowhere: no such file or folder" in message(input=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "no image in it; looked for .avif, .bmp, .gif, .jfif" in message(input=tmp_path / "empty")
    assert "notes.txt" in message(input=folder / "notes.txt")
    assert "no checkpoint in" in message(checkpoint=tmp_path / "empty")
    assert f"step 5 is not in {trained.workdir / 'checkpoints'}: the steps there are" in message(step=5)
    assert "latest, best or a number" in message(step="newest")
    assert not (tmp_path / "out").exists()


def test_a_run_on_eight_devices_loads_on_one(trained, tokenizer, folder, tmp_path):
    """In another process, with the one CPU device that users have."""
    output = tmp_path / "out"
    command = [sys.executable, "-m", "voken_jax.reconstruct", "--checkpoint", str(trained.workdir)]
    command += ["--input", str(folder / "a.png"), "--output", str(output)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with Image.open(folder / "a.png") as image:
        pixels = np.asarray(image, np.float32)[None] / 127.5 - 1
    with np.load(output / "ids.npz") as ids:
        agree = ids["a.png"] == np.asarray(tokenizer.encode(pixels))[0]
    assert agree.mean() > 0.9, "the same weights, compiled differently"
