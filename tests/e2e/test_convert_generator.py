"""voken-convert with generators of both families: their tokenizers, round trips bit by bit, refusals."""

import os
import re
import shutil

import numpy as np
import pytest
import torch
import yaml

from tests.support.published_generator import FAMILIES, Published, call, draw, networks_once, same  # noqa: F401
from tests.support.tiny import quantized_by
from voken_common.checkpoints import torch_pickle
from voken_common.checkpoints.steps import Meta
from voken_common.config.loading import validate_any
from voken_common.config.schema.sampling import Sampling
from voken_jax import convert
from voken_jax.checkpoints.orbax import read_meta
from voken_jax.conversion import run
from voken_jax.conversion.frozen_tokenizer import target_of
from voken_jax.conversion.networks import manifest_of
from voken_jax.conversion.orbax_step import read_step
from voken_jax.generator.api import Generator
from voken_jax.tokenizer.api import Tokenizer
from voken_torch.checkpoints.torch import read as read_torch
from voken_torch.generator.api import Generator as TorchGenerator
from voken_torch.tokenizer.api import Tokenizer as TorchTokenizer


@pytest.fixture(scope="module", params=list(FAMILIES))
def source(request, tmp_path_factory):
    return Published(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def adaptive(tmp_path_factory):
    return Published(tmp_path_factory.mktemp("adaptive"), "adaptive")


@pytest.fixture(scope="module")
def orbax(adaptive, tmp_path_factory):
    """Converted to Orbax: `gen` and `gen_tokenizer`; not to be changed."""
    folder = tmp_path_factory.mktemp("orbax")
    assert call(adaptive.file, folder / "gen", *adaptive.options) == 0
    return folder / "gen"


def test_published_to_each_format_and_back_is_bit_identical(source, tmp_path, capsys):
    chain = ["gen", "gen.pt", "gen.safetensors", "again", "back.ckpt"]
    path, options = source.file, source.options
    for name in chain:
        assert call(path, tmp_path / name, *options) == 0, name
        path, options = tmp_path / name, ()
    back = torch.load(tmp_path / "back.ckpt", weights_only=True)
    same(back["state_dict"], source.state_dict)
    assert (back["global_step"], back["epoch"]) == (11, 0)
    said = capsys.readouterr().out
    assert "drops optimizer_states: belongs to the program that wrote the file" in said
    assert f"wrote {tmp_path / 'gen_tokenizer' / 'checkpoints' / '0'} (the tokenizer)" in said
    # And what came back converts without being told what it is.
    assert call(tmp_path / "back.ckpt", tmp_path / "third.pt") == 0
    same(read_torch(tmp_path / "third.pt")["generator"], source.weights)
    for name in ("gen", "gen.pt", "third.pt"):
        assert target_of(tmp_path / name).exists()


def test_each_checkpoint_names_its_tokenizer_and_is_complete(source, tmp_path):
    assert call(source.file, tmp_path / "gen", *source.options) == 0
    step = tmp_path / "gen" / "checkpoints" / "11"
    meta = read_meta(step)
    assert meta.generator == source.config.model_copy(update={"tokenizer": str(tmp_path / "gen_tokenizer")})
    assert meta.step == 11
    ours = Tokenizer.load(meta.generator.tokenizer)
    assert ours.config == source.tokenizer_config
    assert call(step, tmp_path / "gen.pt") == 0
    theirs = TorchTokenizer.load(tmp_path / "gen_tokenizer.pt")
    assert ours.fingerprint() == theirs.fingerprint()
    assert call(tmp_path / "gen", tmp_path / "npu", "--to", "torch") == 0
    assert sorted(p.name for p in (tmp_path / "npu_tokenizer" / "checkpoints").iterdir()) == ["0.pt"]
    assert validate_any(yaml.safe_load((tmp_path / "npu" / "config.yaml").read_text()), "x").tokenizer == str(
        tmp_path / "npu_tokenizer"
    )


@pytest.mark.parametrize("source", ["adaptive", pytest.param("factorized", marks=pytest.mark.slow)], indirect=True)
def test_verify_compares_logits_and_the_tokenizer(source, tmp_path, capsys):
    assert call(source.file, tmp_path / "gen", "--verify", *source.options) == 0
    said = capsys.readouterr().out
    positions = 2 * 32 * len(source.config.model.vocabularies)
    for what in ("target in JAX", "source in PyTorch", "target in PyTorch"):
        assert f"{what}: ids equal: {positions} of {positions}, largest difference of logits" in said
    assert said.count("largest difference of reconstructions") == 3


@pytest.mark.slow
def test_verify_what_went_back(orbax, tmp_path, capsys):
    assert call(orbax, tmp_path / "back.ckpt", "--verify") == 0
    said = capsys.readouterr().out
    assert "verified tiny_generator with the raw weights" in said
    assert "verified tiny with the raw weights" in said


@pytest.mark.slow
def test_both_frameworks_draw_the_same_images(orbax, tmp_path):
    """Also where generator and tokenizer were moved together."""
    shutil.copytree(orbax, tmp_path / "gen")
    shutil.copytree(target_of(orbax), tmp_path / "gen_tokenizer")
    assert call(tmp_path / "gen", tmp_path / "npu", "--to", "torch") == 0
    likeliest = Sampling((2.0,), (0.0,), (0,), (1.0,))
    ours = Generator.load(tmp_path / "gen").sample([0, 1], sampling=likeliest)
    theirs = TorchGenerator.load(tmp_path / "npu").sample([0, 1], sampling=likeliest)
    np.testing.assert_array_equal(ours.ids, theirs.ids)
    assert (np.asarray(ours.ids)[0] != np.asarray(ours.ids)[1]).any()
    np.testing.assert_allclose(ours.images, theirs.images.movedim(1, -1), atol=1e-4)


@pytest.mark.slow
def test_verify_finds_a_difference(orbax, tmp_path, monkeypatch, capsys):
    original, count = run.read, []

    def changed(*arguments):
        contents = original(*arguments)
        count.append(contents.kind)
        if count == ["generator", "tokenizer", "generator", "generator"]:
            weights = contents.weights["raw"]
            weights["head.weight"] = weights["head.weight"] + 0.1 * (np.arange(24)[:, None] == 3)
        return contents

    monkeypatch.setattr(run, "read", changed)
    assert call(orbax, tmp_path / "x.pt", "--verify") == convert.DIFFERS
    assert "source in PyTorch: ids equal: 64 of 64" in capsys.readouterr().out


def test_averages(adaptive, tmp_path, capsys):
    """Formats with one set of weights get the averages; the layout of the published files has none."""
    mapping = adaptive.mapping | {"optimizer": adaptive.mapping["optimizer"] | {"ema_decay": 0.9}, "tokenizer": None}
    averages = {name: tensor + 1 for name, tensor in adaptive.weights.items()}
    meta = Meta(validate_any(mapping, "x"), 5, {"loss": 2.0})
    torch.save(
        {"format": "voken", **meta.to_dict(), "generator": adaptive.weights, "generator_ema": averages},
        tmp_path / "own.pt",
    )
    assert call(tmp_path / "own.pt", tmp_path / "x.safetensors") == 0
    said = capsys.readouterr().out
    assert "drops raw weights: a .safetensors file holds one set" in said
    assert "drops no tokenizer comes with it" in said
    assert call(tmp_path / "own.pt", tmp_path / "both") == 0
    sets = read_step(tmp_path / "both" / "checkpoints" / "5").weights
    same(sets["ema"], averages)
    same(sets["raw"], adaptive.weights)
    assert call(tmp_path / "own.pt", tmp_path / "x.ckpt") == 2
    assert (
        "names no tokenizer, and a Lightning file of a generator holds one: pass --tokenizer" in capsys.readouterr().err
    )
    assert call(adaptive.file, tmp_path / "gen", *adaptive.options) == 0
    assert call(tmp_path / "own.pt", tmp_path / "x.ckpt", "--tokenizer", tmp_path / "gen_tokenizer") == 0
    assert "drops raw weights: the layout has one set of a generator's weights" in capsys.readouterr().out
    state_dict = torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"]
    expected = {f"transformer.{name}": tensor for name, tensor in averages.items()}
    same(state_dict, expected | {k: v for k, v in adaptive.state_dict.items() if k.startswith("first_stage")})


def test_a_tokenizer_with_averages_gives_them(adaptive, tmp_path, capsys):
    """What is embedded is what `Tokenizer.load` takes."""
    averages = {name: tensor * 2 for name, tensor in adaptive.tokenizer_weights.items()}
    meta = Meta(adaptive.tokenizer_config, 3, {})
    root = {"format": "voken", **meta.to_dict(), "generator": adaptive.tokenizer_weights, "generator_ema": averages}
    torch.save(root, tmp_path / "tok.pt")
    command = (adaptive.file, tmp_path / "x.pt", *adaptive.options[:2], "--tokenizer", tmp_path / "tok.pt")
    assert call(*command) == 0
    assert "drops raw weights: the generator asks for the other set" in capsys.readouterr().out
    same(read_torch(tmp_path / "x_tokenizer.pt")["generator_ema"], averages)
    assert "generator" not in read_torch(tmp_path / "x_tokenizer.pt")
    assert call(tmp_path / "x.pt", tmp_path / "x.ckpt") == 0
    embedded = torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"]
    same({k: v for k, v in embedded.items() if k[0] == "f"}, {f"first_stage_model.{k}": v for k, v in averages.items()})


def test_a_moved_generator_finds_its_tokenizer(orbax, tmp_path, monkeypatch, capsys):
    shutil.copytree(orbax, tmp_path / "gen")
    shutil.move(orbax.parent / "gen_tokenizer", tmp_path / "gen_tokenizer")
    try:
        monkeypatch.chdir(tmp_path)
        assert call("gen", "x.ckpt") == 0
        (tmp_path / "gen_tokenizer").rename(tmp_path / "lost")
        assert call("gen", "y.pt") == 0
        assert "drops the tokenizer: " in capsys.readouterr().out
        assert call("gen", "y.ckpt") == 2
        assert "found nothing at " in capsys.readouterr().err
        assert call("gen", "y.ckpt", "--tokenizer", "lost") == 0
    finally:
        shutil.move(next(p for p in (tmp_path / "lost", tmp_path / "gen_tokenizer") if p.exists()), target_of(orbax))


def without(key):
    return lambda weights: {k: v for k, v in weights.items() if k != key}


BLOCK, FIRST = "transformer.blocks.1.attention.wo.weight", "first_stage_model.quantize.embedding.weight"
NAN, INFINITE = torch.full((16, 16), torch.nan), torch.full((24, 8), torch.inf)
DAMAGE = {
    "missing": (without(BLOCK), r"1 name\(s\) missing, 0 unexpected\n  missing: blocks.1.attention.wo.weight"),
    "extra": (lambda w: w | {"transformer.blocks.1.extra": torch.ones(1)}, "unexpected: blocks.1.extra"),
    "misshapen": (lambda w: w | {BLOCK: torch.ones(16, 8)}, r"wo.weight: found \(16, 8\), expected \(16, 16\)"),
    "nan": (lambda w: w | {BLOCK: NAN}, "blocks.1.attention.wo.weight of the raw weights: 256"),
    "missing first": (without(FIRST), r"first stage.*\n  missing: quantize.embedding.weight"),
    "misshapen first": (lambda w: w | {FIRST: torch.ones(24, 4)}, r"weight: found \(24, 4\), expected \(24, 8\)"),
    "nan first": (lambda w: w | {FIRST: INFINITE}, r"first stage: 1 tensor\(s\) are not finite"),
    "foreign": (lambda w: w | {"model_ema.x": torch.ones(1)}, "weights of a generator lie under transformer., first_"),
    "none": (lambda w: {k: v for k, v in w.items() if k == FIRST}, "no weight of a generator itself, only such as"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_generators_are_refused_and_nothing_is_written(adaptive, tmp_path, capsys, damage):
    change, message = DAMAGE[damage]
    file = Published.write(tmp_path / "bad.ckpt", change(adaptive.state_dict))
    before = set(tmp_path.iterdir())
    assert call(file, tmp_path / "gen", *adaptive.options) == 2
    found = capsys.readouterr().err
    assert re.search(message, found), found
    assert set(tmp_path.iterdir()) == before


def test_truncated_and_malicious_files(adaptive, tmp_path, capsys):
    data = adaptive.file.read_bytes()
    (tmp_path / "short.ckpt").write_bytes(data[: len(data) // 2])
    assert call(tmp_path / "short.ckpt", tmp_path / "gen", *adaptive.options) == 2
    assert "damaged or incomplete" in capsys.readouterr().err

    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"state_dict": adaptive.state_dict, "hyper_parameters": Malicious()}, tmp_path / "bad.ckpt")
    assert call(tmp_path / "bad.ckpt", tmp_path / "gen", *adaptive.options) == 2
    assert "mkdir" in capsys.readouterr().err
    assert call(tmp_path / "bad.ckpt", tmp_path / "gen", "--skip-objects", *adaptive.options) == 0
    assert not (tmp_path / "ran").exists()


def test_targets_that_may_not_be_written(adaptive, orbax, tmp_path, capsys):
    (tmp_path / "gen_tokenizer.pt").write_bytes(b"mine")
    assert call(orbax, tmp_path / "gen.pt") == 2
    assert "gen_tokenizer.pt exists; pass --overwrite" in capsys.readouterr().err
    assert not (tmp_path / "gen.pt").exists()
    assert (tmp_path / "gen_tokenizer.pt").read_bytes() == b"mine"
    assert call(orbax, tmp_path / "gen.pt", "--overwrite") == 0
    assert TorchTokenizer.load(tmp_path / "gen_tokenizer.pt").config == adaptive.tokenizer_config


def test_options_that_do_not_fit(adaptive, orbax, tmp_path, capsys):
    for arguments, message in (
        ((adaptive.file, tmp_path / "x", "--config", adaptive.options[3]), "is the configuration of a tokenizer, "),
        ((target_of(orbax), tmp_path / "x", "--tokenizer", orbax), "are for generators; "),
        ((orbax, tmp_path / "x", "--tokenizer", orbax), "of generator tiny_generator, expected one of a tokenizer"),
        ((adaptive.file, tmp_path / "x", *adaptive.options[:3], "nix"), "--tokenizer-config nix: no such file"),
        ((orbax, tmp_path / "x", "--weights", "ema"), "holds no generator_ema; found: generator, meta"),
        ((adaptive.file, tmp_path / "x", "--weights", "ema", *adaptive.options), "holds raw weights, not the averaged"),
    ):
        assert call(*arguments) == 2
        assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_with_other_codes_is_refused(orbax, tmp_path, capsys):
    config = validate_any(quantized_by("ibq", codes=32), "other")
    weights = draw(manifest_of(config).generator, np.random.default_rng(1))
    torch.save({"format": "voken", **Meta(config, 0, {}).to_dict(), "generator": weights}, tmp_path / "tok.pt")
    assert call(orbax, tmp_path / "x", "--tokenizer", tmp_path / "tok.pt") == 2
    assert "is tokenizer tiny with 32 codes, but tiny_generator predicts 24" in capsys.readouterr().err


def test_weights_without_a_configuration(adaptive, tmp_path, capsys):
    assert call(adaptive.file, tmp_path / "x") == 2
    error = capsys.readouterr().err
    assert "fits no published model. The nearest is ibq_generator_" in error
    assert "vocabularies: found (24,), expected (16384,)" in error
    assert call(adaptive.file, tmp_path / "x", *adaptive.options[:2]) == 2
    assert "pass its configuration with --tokenizer-config FILE" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_state_dict_reader_and_the_converter_agree(adaptive):
    same(torch_pickle.load_state_dict(adaptive.file), adaptive.state_dict)
