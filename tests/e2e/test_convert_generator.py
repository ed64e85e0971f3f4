"""voken-convert with generators of both families: their tokenizers, round trips bit by bit, refusals."""

import dataclasses
import functools
import json
import math
import os
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import yaml

from tests.e2e.tiny import TINY, quantized_by
from tests.e2e.tiny_generator import ADAPTIVE, FACTORIZED, generator_config, generator_mapping, write_shards
from voken_common import published, torch_pickle
from voken_common.checkpoints import Meta, Progress
from voken_common.config import load_any_config, validate_any
from voken_common.conversion import matching
from voken_common.data.token_pipeline import build_token_iterator
from voken_common.errors import CheckpointError
from voken_common.sampling import Sampling
from voken_jax import convert
from voken_jax.checkpoint import Checkpoints, read_meta
from voken_jax.conversion import run
from voken_jax.conversion.first_stage import target_of
from voken_jax.conversion.networks import manifest_of
from voken_jax.conversion.orbax_step import read_step
from voken_jax.generator import Generator
from voken_jax.generator_task import GeneratorTask
from voken_jax.tokenizer import Tokenizer
from voken_torch.checkpoint import Checkpoints as TorchCheckpoints
from voken_torch.checkpoint import read as read_torch
from voken_torch.generator import Generator as TorchGenerator
from voken_torch.generator_step import create_generator_state
from voken_torch.tokenizer import Tokenizer as TorchTokenizer

FAMILIES = {
    "factorized": (FACTORIZED, TINY),
    "adaptive": (ADAPTIVE | {"vocabularies": [24]}, quantized_by("ibq")),
}
FILES = {"": "", ".pt": ".pt", ".safetensors": ".safetensors"}


@pytest.fixture(scope="module", autouse=True)
def networks_once():
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(run, "manifest_of", functools.cache(manifest_of))
        yield


def call(*arguments):
    return convert.main([str(argument) for argument in arguments])


def draw(shapes, rng, deviation=0.2):
    arrays = {name: rng.normal(0, deviation, leaf.shape).astype(np.float32) for name, leaf in shapes.items()}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


class Published:
    """A seeded generator in the published layout, and the configurations of both networks in it."""

    def __init__(self, folder, family):
        model, tokenizer = FAMILIES[family]
        self.mapping = generator_mapping(Path("shards"), model)
        self.config, self.tokenizer_config = (validate_any(m, family) for m in (self.mapping, tokenizer))
        rng = np.random.default_rng(0)
        self.weights = draw(manifest_of(self.config).generator, rng, 0.7)
        self.tokenizer_weights = draw(manifest_of(self.tokenizer_config).generator, rng)
        self.state_dict = {f"transformer.{name}": tensor for name, tensor in self.weights.items()}
        self.state_dict |= {f"first_stage_model.{name}": tensor for name, tensor in self.tokenizer_weights.items()}
        self.file, self.family = folder / f"{family}.ckpt", family
        self.write(self.file, self.state_dict)
        for name, mapping in (("gen.yaml", self.mapping), ("tok.yaml", tokenizer)):
            (folder / name).write_text(yaml.safe_dump(mapping))
        self.options = ("--config", folder / "gen.yaml", "--tokenizer-config", folder / "tok.yaml")

    @staticmethod
    def write(path, state_dict):
        torch.save({"state_dict": state_dict, "global_step": 11, "epoch": 2, "optimizer_states": [1]}, path)
        return path


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


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert np.asarray(ours[name]).tobytes() == np.asarray(theirs[name]).tobytes(), name


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
    assert "fits no published model. The nearest is IBQ/imagenet_conditional_llama_" in error
    assert "vocabularies: found (24,), expected (16384,)" in error
    assert call(adaptive.file, tmp_path / "x", *adaptive.options[:2]) == 2
    assert "pass its configuration with --tokenizer-config FILE" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


MANIFESTS = Path(__file__).parents[1] / "manifests"


def published_contents(name):
    model = published.find(name)
    manifest = json.loads((MANIFESTS / f"{model.project}__{model.name}.json").read_text())
    weights = {key: np.broadcast_to(np.float32(0), shape) for key, shape in manifest.items()}
    return run.lightning.to_contents({"state_dict": weights}, "published.ckpt")


GENERATORS = [model for model in published.MODELS if model.family == "generator"]


@pytest.mark.parametrize("model", GENERATORS, ids=lambda model: model.full_name)
def test_published_generators_are_recognised(model):
    contents = published_contents(model.full_name)
    config = matching.find_config(contents, manifest_of)
    assert (config.kind, config.name) == ("generator", model.name)
    assert config.model.network == ("adaptive" if model.project == "IBQ" else "factorized")
    assert matching.published_tokenizer(config) == model.tokenizer


@pytest.mark.parametrize("project", ["IBQ", pytest.param("Open-MAGVIT2", marks=pytest.mark.slow)])
def test_tokenizers_of_published_generators_are_recognised(project):
    model = published.find(f"{project}/imagenet_conditional_llama_B")
    stage = published_contents(model.full_name).first_stage
    with pytest.raises(CheckpointError, match=r"fits 2 published models(?s:.*)--tokenizer-config (pre|imagenet)"):
        matching.find_config(stage, run.manifest_of, option="--tokenizer-config")
    tokenizer = matching.find_config(stage, run.manifest_of, model.tokenizer)
    assert tokenizer.name == model.tokenizer
    config = load_any_config(published.config_file(model))
    assert tokenizer.quantizer.codebook_size == math.prod(config.model.vocabularies)


def test_several_generators_that_fit_are_listed(monkeypatch):
    twin = published.find("IBQ/imagenet_conditional_llama_B")
    monkeypatch.setattr(matching, "MODELS", (*published.MODELS, twin.__class__(**{**vars(twin), "name": "twin"})))
    with pytest.raises(CheckpointError, match=r"--config IBQ/imagenet_conditional_llama_B\n  --config twin"):
        matching.find_config(published_contents("IBQ/imagenet_conditional_llama_B"), manifest_of)


def test_the_state_dict_reader_and_the_converter_agree(adaptive):
    same(torch_pickle.load_state_dict(adaptive.file), adaptive.state_dict)


@pytest.fixture(scope="module", params=[True, False], ids=["averages and clipping", "neither"])
def trained_state(request, tmp_path_factory):
    """(work directory, configuration, state, abstract state): every number another one, as the JAX trainer saves it."""
    folder = write_shards(tmp_path_factory.mktemp("run"), [24])
    optimizer = {"ema_decay": 0.9} if request.param else {"gradient_clip": None, "decay_all": False}
    config = generator_config(folder, FAMILIES["adaptive"][0], optimizer=optimizer)
    abstract = GeneratorTask(config, per_epoch=5).abstract
    rng = np.random.default_rng(0)

    def draw(leaf):
        integers = np.issubdtype(leaf.dtype, np.integer)
        values = rng.integers(0, 2**31, leaf.shape) if integers else 0.1 * rng.normal(size=leaf.shape)
        return jax.device_put((values if leaf.ndim else np.int32(6)).astype(leaf.dtype), leaf.sharding)

    state = dataclasses.replace(jax.tree.map(draw, abstract), failure=np.int32(0))
    checkpoints, iterator = Checkpoints(folder / "run", config.checkpoint), tokens_of(config)
    next(iterator)
    checkpoints.save(state, config, iterator, {"loss": 2.5}, Progress({"loss": (7.5, 3, "float32")}, 2))
    checkpoints.close()
    iterator.close()
    return folder / "run", config, state, abstract


def tokens_of(config):
    return build_token_iterator(config.data, batch_size_per_process=8, seed=0)


def test_a_training_state_moves_to_torch_and_back_bit_by_bit(trained_state, tmp_path, capsys):
    folder, config, state, abstract = trained_state
    assert call(folder, tmp_path / "torch", "--to", "torch") == 0
    assert "keeps training state: optimizer, random numbers" in capsys.readouterr().out
    assert call(tmp_path / "torch", tmp_path / "jax") == 0
    checkpoints, iterator = Checkpoints(tmp_path / "jax", config.checkpoint), tokens_of(config)
    assert checkpoints.meta(6) == Meta(config, 6, {"loss": 2.5}, Progress({"loss": (7.5, 3, "float32")}, 2))
    restored = checkpoints.restore(abstract, iterator)
    checkpoints.close()
    iterator.close()
    assert iterator.position == 8
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for (path, ours), theirs in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(restored)):
        assert ours.dtype == theirs.dtype, path
        np.testing.assert_array_equal(ours, theirs, err_msg=jax.tree_util.keystr(path))


def test_torch_continues_from_a_converted_training_state(trained_state, tmp_path):
    folder, config, state, _ = trained_state
    assert call(folder, tmp_path / "run", "--to", "torch") == 0
    torch_state, iterator = create_generator_state(config), tokens_of(config)
    TorchCheckpoints(tmp_path / "run", config.checkpoint).restore(torch_state, iterator)
    iterator.close()
    assert (torch_state.step, iterator.position) == (6, 8)
    assert torch_state.rng.tolist() == np.asarray(state.rng).tolist()
    adam = next(part for part in state.optimizer if hasattr(part, "nu"))
    moments = torch_state.to_dict()["optimizer"]
    assert int(moments["count"]) == 6
    for name in ("blocks.1.attention.wqkv", "blocks.0.ada_lin.1"):
        expected = np.asarray(adam.nu[f"{name}.kernel"]).T
        np.testing.assert_array_equal(moments["nu"][f"{name}.weight"], expected)
    assert bool(torch_state.generator_ema) == (config.optimizer.ema_decay is not None)


def test_other_formats_say_what_they_leave_of_a_training_state(trained_state, tmp_path, capsys):
    folder = trained_state[0]
    assert call(folder, tmp_path / "x.safetensors") == 0
    assert "drops training state and position in the data: the target holds weights only" in capsys.readouterr().out
    assert call(folder, tmp_path / "x.pt", "--weights", "raw") == 0
    assert read_torch(tmp_path / "x.pt").keys() & {"rest", "data", "generator_ema", "generator"} == {"generator"}
