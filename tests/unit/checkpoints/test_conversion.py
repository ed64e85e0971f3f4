"""What checkpoints hold, apart from frameworks: file kinds, layouts, matching of configurations, places."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from tests.support.tiny import TINY
from voken_common.checkpoints import weight_names as names
from voken_common.checkpoints.conversion import contents as c
from voken_common.checkpoints.conversion import lightning, matching, torch_file
from voken_common.checkpoints.conversion.formats import read_file
from voken_common.checkpoints.conversion.safetensors_file import is_safetensors, read_safetensors, write_safetensors
from voken_common.checkpoints.steps import Meta
from voken_common.config.loading import validate
from voken_common.errors import CheckpointError, RefusedError
from voken_common.published.models import find
from voken_jax.conversion import places

MANIFESTS = Path(__file__).parents[2] / "manifests"
META = Meta(validate(TINY, "tiny"), 3, {"psnr": 21.5})
OWN = {"format": "voken", **META.to_dict()}
WEIGHTS = {
    "encoder.strided": np.arange(60, dtype=np.float32).reshape(3, 4, 5).transpose(2, 0, 1),
    "encoder.scalar": np.array(7, np.int64),
    "decoder.half": np.ones(3, ml_dtypes.bfloat16),
    "decoder.wide": np.arange(3.0),
    "decoder.empty": np.zeros((0, 4), np.float32),
}


def write(path, weights=None, kind="ema"):
    with path.open("wb") as file:
        write_safetensors(file, WEIGHTS if weights is None else weights, META, kind)
    return path


def test_safetensors_come_back_bit_by_bit(tmp_path):
    path = write(tmp_path / "x.safetensors")
    meta, arrays = read_safetensors(path)
    assert meta == META
    assert arrays.keys() == WEIGHTS.keys()
    theirs = safetensors.torch.load_file(path)
    for name, array in WEIGHTS.items():
        assert (arrays[name].dtype, arrays[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(arrays[name], array)
        assert theirs[name].shape == array.shape
    assert theirs["decoder.half"].dtype == torch.bfloat16
    with pytest.raises(CheckpointError, match="holds the ema weights, not the raw ones"):
        read_safetensors(path, "raw")


def test_safetensors_errors(tmp_path):
    path = write(tmp_path / "x.safetensors")
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=r"damaged or incomplete \(\d+ bytes"):
        read_safetensors(path)
    with pytest.raises(FileNotFoundError):
        read_safetensors(tmp_path / "none")
    safetensors.numpy.save_file({"encoder.a": np.ones(2)}, path)
    with pytest.raises(CheckpointError, match="carries no configuration of voken"):
        read_safetensors(path)
    with pytest.raises(CheckpointError, match="has no type for .*complex64"):
        write(path, {"a": np.ones(2, np.complex64)})


def test_kinds_are_told_by_content(tmp_path):
    write(tmp_path / "looks.ckpt")
    assert read_file(tmp_path / "looks.ckpt").format == "safetensors"
    weights = {"encoder.a.weight": torch.ones(2), "loss.discriminator.b": torch.ones(1)}
    torch.save({"state_dict": weights, "global_step": 5, "optimizer_states": [1]}, tmp_path / "looks.safetensors")
    assert not is_safetensors(tmp_path / "looks.safetensors")
    read = read_file(tmp_path / "looks.safetensors")
    assert (read.format, read.step, list(read.weights), list(read.discriminator)) == ("lightning", 5, ["raw"], ["b"])
    assert any("optimizer_states" in line for line in read.dropped)
    torch.save(weights, tmp_path / "bare")
    assert read_file(tmp_path / "bare").weights["raw"].keys() == {"encoder.a.weight"}
    torch.save(OWN | {"generator": {"a": torch.ones(2)}}, tmp_path / "looks.txt")
    read = read_file(tmp_path / "looks.txt")
    assert (read.format, read.meta, read.training) == ("torch", META, None)


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ([1, 2], "is a torch file with list; expected a Lightning"),
        ({"epoch": 1}, "is a torch file with entries epoch; expected"),
        ({"state_dict": [1]}, "state_dict is list; expected weights by name"),
        ({"state_dict": {"encoder.a": 1}}, r"the state dict holds \{'encoder.a': 'int'\}"),
        ({"state_dict": {"encoder.a": torch.ones(1), "other.b": torch.ones(1)}}, "1 unexpected .* such as other.b"),
        ({"state_dict": {"foo.a": torch.ones(1)}}, "weights of an image tokenizer lie under encoder., "),
        ({"format": "voken"}, "has layout None, this version reads layout 1"),
        (OWN, "holds no weights"),
        (OWN | {"genrator": {}}, r"has entries \['genrator'\]; layout 1 has format"),
        (OWN | {"generator": {"a": 1}}, r"generator holds \{'a': 'int'\}"),
        (
            {"format": "voken", **META.to_dict(), "generator": {"a": torch.ones(1)}, "rest": {}},
            "rest: 7 name.* missing",
        ),
    ],
)
def test_other_torch_files_are_told(tmp_path, root, message):
    torch.save(root, tmp_path / "x")
    with pytest.raises(ValueError, match=message):
        read_file(tmp_path / "x")


def test_a_file_that_names_objects_says_what_can_be_done(tmp_path):
    torch.save({"state_dict": {"encoder.a": torch.ones(2)}, "path": Path("x")}, tmp_path / "x")
    with pytest.raises(RefusedError, match=r"names pathlib.*Nothing was run.*--skip-objects.*--allow-pickle"):
        read_file(tmp_path / "x")
    assert read_file(tmp_path / "x", "skip").weights["raw"]["encoder.a"].tolist() == [1.0, 1.0]
    trusted = {"state_dict": {"encoder.b": np.ones(1)}}
    assert read_file(tmp_path / "x", load_trusted=lambda path: trusted).weights["raw"].keys() == {"encoder.b"}


def published(name, without=(), ema=True):
    """Contents and manifest of a published model: arrays of its shapes that take no memory."""
    model = find(name)
    manifest = json.loads((MANIFESTS / model.manifest).read_text())
    weights = {key: np.broadcast_to(np.float32(0), shape) for key, shape in manifest.items() if key not in without}
    return lightning.to_contents({"state_dict": weights}, "published.ckpt")


def manifest_of(config):
    """As `voken_jax.conversion.networks` finds it (a test of the published models compares them), but at once."""
    found = published(config.name)
    averaged = {names.DISCRIMINATOR_PREFIX + key: key for key in found.discriminator}
    trained = {key for whole, key in averaged.items() if names.ema_name(whole) in found.unnamed_averages}
    shapes = {key: c.Shape(array.shape) for key, array in found.discriminator.items()}
    return c.Manifest(
        generator={key: c.Shape(array.shape) for key, array in found.weights["raw"].items()},
        discriminator={key: shape for key, shape in shapes.items() if key in trained},
        buffers={key: shape for key, shape in shapes.items() if key not in trained},
    )


@pytest.mark.parametrize(
    "name", ["imagenet_lfqgan_128_L", "pretrain_lfqgan_256_16384", "imagenet_ibqgan_1024", "imagenet_ibqgan_8192"]
)
def test_a_published_model_is_recognised(name):
    found = published(name)
    config, model = matching.find_config(found, manifest_of)
    assert (config.name, model.name) == (name, name)
    manifest = manifest_of(config)
    lightning.resolve_averages(found, manifest)
    c.check_networks(found, manifest)
    assert found.weights["ema"].keys() == found.weights["raw"].keys() == manifest.generator.keys()
    assert found.discriminator_ema.keys() == manifest.discriminator.keys()


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("imagenet_lfqgan_256_L", "pretrain_lfqgan_256_262144"),
        ("imagenet_ibqgan_16384", "pretrain_ibqgan_16384"),
        ("imagenet_ibqgan_262144", "pretrain_ibqgan_262144"),
    ],
)
def test_of_models_with_one_network_the_name_of_the_file_decides(name, other, caplog):
    found = published(name)
    for model in (name, other):
        for prefer in (model, find(model).file, f"copy_of_{model}.ckpt"):
            assert matching.find_config(found, manifest_of, prefer)[0].name == model
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    assert matching.find_config(found, manifest_of, "weights.ckpt")[0].name == name
    assert f"fits {name} and {other}" in caplog.text
    assert f"It is taken for {name}; --config {other} says otherwise" in caplog.text


def test_the_nearest_model_and_what_differs_are_told():
    found = published("imagenet_lfqgan_128_L", without={"encoder.norm_out.bias"})
    with pytest.raises(CheckpointError) as caught:
        matching.find_config(found, manifest_of)
    assert "nearest is imagenet_lfqgan_128_L" in str(caught.value)
    assert "missing: encoder.norm_out.bias" in str(caught.value)
    found = published("imagenet_ibqgan_1024")
    found.weights["raw"]["quantize.embedding.weight"] = np.zeros((1000, 256), np.float32)
    with pytest.raises(CheckpointError, match=r"codebook_size: found 1000, expected 1024(.|\n)*--config FILE"):
        matching.find_config(found, manifest_of)
    with pytest.raises(CheckpointError, match="encoder.conv_in.weight"):
        matching.find_config(published("imagenet_ibqgan_1024", without={"encoder.conv_in.weight"}), manifest_of)


SHAPES = c.Manifest(
    {"encoder.a.weight": c.Shape((2,)), "encoder.b": c.Shape((1,))}, {"main.w": c.Shape((1,))}, {"main.m": c.Shape(())}
)


def small(**averages):
    weights = {"encoder.a.weight": np.ones(2), "encoder.b": np.ones(1), "loss.discriminator.main.w": np.ones(1)}
    weights["loss.discriminator.main.m"] = np.array(0)
    return lightning.to_contents(weights | {f"model_ema.{key}": value for key, value in averages.items()}, "small")


def test_averages_are_complete_or_an_error():
    found = small(encoderaweight=np.zeros(2), encoderb=np.zeros(1), decay=np.array(0.9))
    lightning.resolve_averages(found, SHAPES)
    assert found.weights["ema"].keys() == SHAPES.generator.keys()
    assert found.discriminator_ema is None
    with pytest.raises(names.NameMismatch, match="missing: model_ema.encoderb"):
        lightning.resolve_averages(small(encoderaweight=np.zeros(2)), SHAPES)
    with pytest.raises(names.NameMismatch, match="unexpected: model_ema.encoderc"):
        lightning.resolve_averages(
            small(encoderaweight=np.zeros(2), encoderb=np.zeros(1), encoderc=np.zeros(1)), SHAPES
        )
    both = {"encoder.a.b": c.Shape(()), "encoder.ab": c.Shape(())}
    with pytest.raises(names.NameMismatch, match="two weights of this network have one name without dots"):
        lightning.resolve_averages(small(encoderab=np.ones(1)), c.Manifest(both, {}, {}))


def whole():
    """Contents with a training state."""
    found = small(encoderaweight=np.zeros(2), encoderb=np.zeros(1), lossdiscriminatormainw=np.zeros(1))
    lightning.resolve_averages(found, SHAPES)
    found.config, found.step, found.metrics, found.data = META.config, META.step, META.metrics, {"position": 4}
    generator = {name: np.full(shape.shape, 2.0) for name, shape in SHAPES.generator.items()}
    player = {"main.w": np.full(1, 3.0)}
    lecam = {"real": np.array([1.0, 2.0]), "fake": np.zeros(2)}
    moments = c.Moments(9, generator, generator), c.Moments(9, player, player)
    found.training = c.Training(np.array([1, 2**32 - 1]), *moments, lecam)
    return found


@pytest.mark.parametrize(
    ("target", "weights", "sets", "rest"),
    [
        ("orbax", None, ["raw", "ema"], True),
        ("torch", None, ["raw", "ema"], True),
        ("torch", "raw", ["raw"], False),
        ("safetensors", None, ["ema"], False),
        ("safetensors", "raw", ["raw"], False),
        ("lightning", "ema", ["ema"], False),
    ],
)
def test_what_is_kept(target, weights, sets, rest):
    found = whole()
    c.narrow(found, target, weights)
    assert list(found.weights) == sets
    assert all((part is not None) == rest for part in (found.training, found.data, found.discriminator))
    assert len(found.kept()) + len(found.dropped) >= 5


def test_lightning_keeps_the_discriminator_and_its_averages():
    found = whole()
    c.narrow(found, "lightning", None)
    state_dict = lightning.from_contents(found)["state_dict"]
    assert state_dict["model_ema.lossdiscriminatormainw"] == 0
    assert state_dict["model_ema.num_updates"] == -1
    again = lightning.to_contents(lightning.from_contents(found), "again")
    lightning.resolve_averages(again, SHAPES)
    assert again.meta == found.meta
    assert again.discriminator == found.discriminator
    assert again.discriminator_ema == found.discriminator_ema
    del found.weights["raw"]
    state_dict = lightning.from_contents(found)["state_dict"]
    assert state_dict["encoder.b"] is state_dict["model_ema.encoderb"]


def test_the_training_state_comes_back_from_its_torch_layout():
    found = whole()
    root = torch_file.from_contents(found, SHAPES)
    assert root["rest"]["buffers"].keys() == {"main.m"}
    again = torch_file.to_contents(root, "again")
    ours, theirs = dict(found.tensors()), dict(again.tensors())
    assert len(ours) == len(list(found.tensors()))
    assert ours.keys() == theirs.keys()
    for what, array in ours.items():
        np.testing.assert_array_equal(array, theirs[what], err_msg=what)
    assert (again.data, again.meta, again.training.generator_optimizer.count) == (found.data, found.meta, 9)
    np.testing.assert_array_equal(again.training.rng, found.training.rng)


def test_what_is_not_there_cannot_be_asked_for():
    found = small()
    with pytest.raises(CheckpointError, match=r"small holds raw weights, not the averaged weights \(EMA\) asked for"):
        c.narrow(found, "orbax", "ema")


def test_tensors_that_are_not_finite_are_named():
    found = whole()
    found.weights["ema"]["encoder.a.weight"] = np.array([1.0, np.nan])
    found.training.generator_optimizer.nu["encoder.b"] = np.array([np.inf])
    with pytest.raises(CheckpointError) as caught:
        c.check_finite(found, allow_nonfinite=False)
    assert "encoder.a.weight of the averaged weights (EMA): 1 of 2 values" in str(caught.value)
    assert "encoder.b of the second moments of the generator's optimizer: 1 of 1" in str(caught.value)
    c.check_finite(found, allow_nonfinite=True)


def test_networks_must_agree():
    found = whole()
    found.training.discriminator_optimizer.mu["main.x"] = np.ones(1)
    with pytest.raises(names.NameMismatch, match="discriminator's optimizer: 0 name.* missing, 1 unexpected"):
        c.check_networks(found, SHAPES)
    found = whole()
    found.weights["ema"]["encoder.b"] = np.ones((1, 1))
    with pytest.raises(names.NameMismatch, match=r"encoder.b: found \(1, 1\), expected \(1,\)"):
        c.check_networks(found, SHAPES)


@pytest.mark.parametrize(
    ("name", "asked", "expected"),
    [
        ("a.pt", None, "torch"),
        ("a.safetensors", None, "safetensors"),
        ("a.ckpt", None, "lightning"),
        ("a", None, "orbax"),
        ("a.v2", None, "orbax"),
        ("a", "torch", "torch"),
        ("a", "lightning", None),
        ("a.pt", "orbax", None),
        ("a.pt", "safetensors", None),
    ],
)
def test_the_target_follows_the_suffix(name, asked, expected):
    if expected is None:
        with pytest.raises(CheckpointError, match=f"does not look like what --to {asked} writes"):
            places.target_format(Path(name), asked)
    else:
        assert places.target_format(Path(name), asked) == expected


def test_nothing_is_overwritten_by_accident(tmp_path):
    source = tmp_path / "run" / "checkpoints"
    source.mkdir(parents=True)
    file, folder = tmp_path / "x.pt", tmp_path / "out"
    file.touch()
    places.check_target(folder, source, "orbax", overwrite=False)
    folder.mkdir()
    places.check_target(folder, source, "orbax", overwrite=False)
    (folder / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="out exists; pass --overwrite"):
        places.check_target(folder, source, "orbax", overwrite=False)
    with pytest.raises(CheckpointError, match="x.pt exists; pass --overwrite"):
        places.check_target(file, source, "torch", overwrite=False)
    places.check_target(folder, source, "orbax", overwrite=True)
    places.check_target(file, source, "torch", overwrite=True)
    (folder / "thesis.tex").touch()
    with pytest.raises(CheckpointError, match=r"holds more than voken-convert writes \(thesis.tex\)"):
        places.check_target(folder, source, "orbax", overwrite=True)
    with pytest.raises(CheckpointError, match="is or contains the source"):
        places.check_target(tmp_path, source, "orbax", overwrite=True)
    with pytest.raises(CheckpointError, match="is a file, which --overwrite does not replace"):
        places.check_target(file, source, "orbax", overwrite=True)


def test_a_directory_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "deep" / "out"
    with places.replacing_directory(target) as folder:
        (folder / "a").touch()
        assert not target.exists()
    with pytest.raises(FileNotFoundError), places.replacing_directory(target) as folder:
        (folder / "missing" / "b").touch()
    assert [path.name for path in target.iterdir()] == ["a"]
    with places.replacing_directory(target) as folder:
        (folder / "c").touch()
    assert [path.name for path in target.iterdir()] == ["c"]
    assert [path.name for path in target.parent.iterdir()] == ["out"]


def test_two_checkpoints_of_one_step_are_not_guessed_between(tmp_path):
    (tmp_path / "checkpoints" / "4" / "meta").mkdir(parents=True)
    (tmp_path / "checkpoints" / "4" / "meta" / "metadata").write_text('{"config": {"checkpoint": {}}}')
    (tmp_path / "checkpoints" / "5.pt").touch()
    assert places.find_source(tmp_path).name == "5.pt"
    assert places.find_source(tmp_path, 4).name == "4"
    (tmp_path / "checkpoints" / "4.pt").touch()
    with pytest.raises(CheckpointError, match=r"has step 4 of both frameworks: name 4 or 4\.pt"):
        places.find_source(tmp_path, 4)
    with pytest.raises(CheckpointError, match="no such file or folder"):
        places.find_source(tmp_path / "none")
