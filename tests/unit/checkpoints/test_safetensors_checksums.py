"""Checksums of `.safetensors` files, and `--no-verify` of the commands."""

import importlib
import json
import random
import zlib

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch

from tests.support.tiny import TINY
from tests.support.tiny_generator import generator_mapping
from tests.unit.checkpoints.test_conversion import META, WEIGHTS, write
from tests.unit.checkpoints.test_fuzz import mutated
from tests.unit.checkpoints.test_retention import ONE, TorchRun
from voken_common.checkpoints.conversion.formats import read_file
from voken_common.checkpoints.conversion.safetensors_file import read_safetensors, write_safetensors
from voken_common.checkpoints.steps import Meta
from voken_common.config.loading import validate_any
from voken_common.errors import CheckpointError, DamagedError
from voken_jax import convert
from voken_jax import encode as jax_encode
from voken_jax import reconstruct as jax_reconstruct
from voken_jax import sample as jax_sample
from voken_jax.generator import api as jax_generator
from voken_torch import encode as torch_encode
from voken_torch import reconstruct as torch_reconstruct
from voken_torch import sample as torch_sample
from voken_torch.generator import api as torch_generator
from voken_torch.models.autoencoder import Autoencoder
from voken_torch.models.generator import build_generator
from voken_torch.models.layers import Policy


def parts(path):
    """(header, where the tensors begin, the whole content) of a file."""
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), 8 + length, content


def flip(path, name, byte=0):
    """Change a bit of a tensor."""
    header, begin, content = parts(path)
    first, end = header[name]["data_offsets"]
    content[begin + (first if byte >= 0 else end) + byte] ^= 4
    path.write_bytes(content)


def assert_as_written(meta, arrays):
    assert meta == META
    assert arrays.keys() == WEIGHTS.keys()
    for name, array in arrays.items():
        assert array.dtype == WEIGHTS[name].dtype
        np.testing.assert_array_equal(array, WEIGHTS[name])


def test_the_checksums_are_those_of_the_bytes(tmp_path):
    header, begin, content = parts(write(tmp_path / "x.safetensors"))
    metadata = header.pop("__metadata__")
    assert all(isinstance(value, str) for value in metadata.values()), "the format knows no others"
    sums = json.loads(metadata["crc32"])
    assert sums.keys() == {*WEIGHTS, "__metadata__"}
    for name, entry in header.items():
        first, end = entry["data_offsets"]
        assert sums[name] == zlib.crc32(content[begin + first : begin + end])


@pytest.mark.parametrize("name", [name for name, array in WEIGHTS.items() if array.size])
@pytest.mark.parametrize("byte", [0, -1])
def test_a_flipped_bit_is_traced_to_its_tensor(tmp_path, name, byte):
    path = write(tmp_path / "x.safetensors")
    flip(path, name, byte)
    for read in (read_safetensors, read_file):
        with pytest.raises(DamagedError, match=rf"damaged: not as they were written: {name}\. Get the file again"):
            read(path)
    _, arrays = read_safetensors(path, verify=False)
    assert [n for n, array in arrays.items() if array.tobytes() != WEIGHTS[n].tobytes()] == [name]
    assert read_file(path, verify=False).weights["ema"].keys() == WEIGHTS.keys()


@pytest.mark.parametrize(
    ("old", "new"), [(rb"\"psnr\": 21.5", rb"\"psnr\": 29.5"), (b'"weights":"ema"', b'"weights":"emo"')]
)
def test_a_changed_configuration_is_told(tmp_path, old, new):
    path = write(tmp_path / "x.safetensors")
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))
    with pytest.raises(DamagedError, match="not as they were written: the configuration or the list of tensors"):
        read_safetensors(path)


def test_a_changed_type_is_told(tmp_path):
    path = write(tmp_path / "x.safetensors")
    path.write_bytes(path.read_bytes().replace(b'"F64"', b'"I64"'))
    with pytest.raises(DamagedError, match="the configuration or the list of tensors"):
        read_safetensors(path)


def test_files_without_checksums_and_those_of_other_writers_load(tmp_path):
    path = write(tmp_path / "x.safetensors")
    metadata = parts(path)[0]["__metadata__"]
    tensors = safetensors.torch.load_file(path)
    # With the checksums, in an order of its own.
    safetensors.torch.save_file(tensors, path, metadata)
    assert_as_written(*read_safetensors(path))
    # As voken wrote them before there were checksums.
    del metadata["crc32"]
    about = json.loads(metadata["voken"])
    del about["checksums"]
    metadata["voken"] = json.dumps(about)
    safetensors.torch.save_file(tensors, path, metadata)
    assert_as_written(*read_safetensors(path))
    flip(path, "decoder.wide")
    assert read_safetensors(path)[0] == META, "nothing to compare it with"
    safetensors.numpy.save_file({"encoder.a": np.ones(2)}, path, {"crc32": "of another program"})
    assert read_file(path).weights["raw"]["encoder.a"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("text", ["{", "[]", "[1]", '{"decoder.wide": "x"}', "null", "1"])
def test_damaged_checksums_are_told(tmp_path, text):
    path = write(tmp_path / "x.safetensors")
    metadata = parts(path)[0]["__metadata__"]
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, metadata | {"crc32": text})
    with pytest.raises(DamagedError, match="is damaged: "):
        read_safetensors(path)


@pytest.mark.parametrize("without", [(), ("decoder.wide",)])
def test_checksums_that_are_not_found_are_damage(tmp_path, without):
    """One changed bit in the name of the entry must not turn verification off."""
    path = write(tmp_path / "x.safetensors")
    content = path.read_bytes()
    assert content.count(b'"crc32":') == content.count(b'"voken":') == 1
    for old, new, message in (
        (b'"crc32":', b'"brc32":', "the checksums that were written into it are not there"),
        (b'"voken":', b'"woken":', "the configuration or the list of tensors"),
    ):
        path.write_bytes(content.replace(old, new))
        for name in without:
            flip(path, name)
        with pytest.raises(DamagedError, match=message):
            read_file(path)
        with pytest.raises(DamagedError, match=message):
            read_safetensors(path)
        assert read_file(path, verify=False).weights
    path.write_bytes(content.replace(b'"crc32":', b'"brc32":'))
    assert read_safetensors(path, verify=False)[0] == META


def test_a_configuration_without_checksums_that_cannot_be_read_is_damage(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"encoder.a": np.ones(2)}, path, {"voken": "{"})
    with pytest.raises(DamagedError, match="the checksums that were written into it are not there"):
        read_safetensors(path)
    with pytest.raises(CheckpointError, match="the configuration in its metadata cannot be read"):
        read_safetensors(path, verify=False)


def test_mutated_files_are_an_error_or_right(tmp_path):
    path, draw, errors = write(tmp_path / "x.safetensors"), random.Random(5), []
    whole, count = path.read_bytes(), 400
    for _ in range(count):
        path.write_bytes(mutated(draw, whole, (1,)))
        try:
            assert_as_written(*read_safetensors(path))
        except CheckpointError as error:
            errors.append(str(error))
    assert len(errors) > count * 0.9
    assert all(str(path) in error for error in errors)


def save(path, config, network):
    """Seeded weights of a torch network."""
    draw = np.random.default_rng(3)
    weights = {n: draw.normal(0, 0.3, tuple(v.shape)).astype(np.float32) for n, v in network.state_dict().items()}
    with path.open("wb") as file:
        write_safetensors(file, weights, Meta(config, 5, {}), "raw")
    return path


@pytest.mark.parametrize("framework", [jax_generator, torch_generator])
def test_a_generator_and_its_tokenizer_are_verified_or_not(framework, tmp_path):
    config = validate_any(TINY, "tiny")
    tokenizer = save(tmp_path / "tok.safetensors", config, Autoencoder(config.model, config.quantizer, Policy()))
    own = validate_any(generator_mapping(tmp_path, tokenizer="tok.safetensors"), "generator")
    generator = save(tmp_path / "gen.safetensors", own, build_generator(own.model))
    assert framework.Generator.load(generator).tokenizer.codebook_size == 256
    flip(tokenizer, "decoder.conv_out.bias")
    with pytest.raises(DamagedError, match=r"not as they were written: decoder\.conv_out\.bias"):
        framework.Tokenizer.load(tokenizer)
    with pytest.raises(DamagedError, match=r"decoder\.conv_out\.bias"):
        framework.Generator.load(generator, tokenizer)
    with pytest.raises(DamagedError, match=r"decoder\.conv_out\.bias"):
        framework.Generator.load(generator).tokenizer  # noqa: B018
    assert framework.Generator.load(generator, tokenizer, verify=False).tokenizer.codebook_size == 256
    flip(generator, next(iter(parts(generator)[0].keys() - {"__metadata__"})))
    with pytest.raises(DamagedError):
        framework.Generator.load(generator)
    assert framework.Generator.load(generator, verify=False).tokenizer.codebook_size == 256, "it is not verified either"


@pytest.mark.parametrize("flags", [[], ["--no-verify"]])
@pytest.mark.parametrize(
    ("command", "loader"),
    [
        (jax_reconstruct, "Tokenizer"),
        (torch_reconstruct, "Tokenizer"),
        (jax_encode, "Tokenizer"),
        (torch_encode, "Tokenizer"),
        (jax_sample, "Generator"),
        (torch_sample, "Generator"),
    ],
)
def test_commands_verify_unless_told_not_to(command, loader, flags, tmp_path, monkeypatch, capsys):
    def load(*_, verify=None, **__):
        raise CheckpointError(f"verify is {verify}")

    package = command.__name__.split(".")[0]
    room = importlib.import_module(f"{package}.{loader.lower()}.api")
    monkeypatch.setattr(getattr(room, loader), "load", load)
    arguments = ["--checkpoint", "x", "--output", str(tmp_path / "out"), *flags]
    if command in (jax_reconstruct, torch_reconstruct):
        (tmp_path / "a.png").touch()
        arguments += ["--input", str(tmp_path / "a.png")]
    if loader == "Generator":
        arguments += ["--classes", "0"]
    if command.__name__.startswith("voken_torch"):
        arguments += ["--device", "cpu"]
    assert command.main(arguments) == 2
    assert capsys.readouterr().err == f"error: verify is {not flags}\n"


def test_convert_verifies_its_source_unless_told_not_to(tmp_path, monkeypatch, capsys):
    run = TorchRun(tmp_path, ONE, monkeypatch)
    run.save(1)
    run.damage(1)
    arguments = [str(tmp_path / "checkpoints"), str(tmp_path / "out.safetensors")]
    assert convert.main(arguments) == 2
    assert "conv.weight has another checksum than when it was written" in capsys.readouterr().err
    assert convert.main([*arguments, "--no-verify"]) == 2
    assert "another checksum" not in (told := capsys.readouterr().err)
    assert "missing: generator_optimizer" in told, "it is read, and is no training state"
    damaged = write(tmp_path / "x.safetensors", {"encoder.a": np.ones(3, np.float32)}, "raw")
    flip(damaged, "encoder.a")
    assert convert.main([str(damaged), str(tmp_path / "out.pt")]) == 2
    assert "not as they were written: encoder.a" in capsys.readouterr().err
    assert convert.main([str(damaged), str(tmp_path / "out.pt"), "--no-verify"]) == 2
    assert "not as they were written" not in capsys.readouterr().err
