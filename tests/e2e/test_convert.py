"""voken-convert from the command line: round trips bit by bit, training states, and input that cannot be used."""

import dataclasses
import functools
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

from tests.support.golden_cases import load_cases
from tests.support.reference_config import checkpoint_config
from tests.support.tiny import TINY, quantized_by
from voken_common.checkpoints import torch_pickle
from voken_common.config.loading import to_yaml, validate
from voken_common.data.pipeline import build_train_iterator
from voken_common.errors import CheckpointError
from voken_jax import convert
from voken_jax.checkpoints.orbax import Checkpoints
from voken_jax.conversion import run, torch_bridge, verify
from voken_jax.conversion.networks import manifest_of
from voken_jax.conversion.orbax_step import read_step
from voken_jax.optimization.optim import build_optimizer
from voken_jax.parallel.sharding import make_mesh
from voken_jax.tokenizer.api import Tokenizer
from voken_jax.tokenizer.state import abstract_state, build_players
from voken_torch.checkpoints.torch import Checkpoints as TorchCheckpoints
from voken_torch.tokenizer.state import create_state as create_torch_state

GOLDEN = Path(__file__).parents[1] / "golden"
CASE = load_cases(GOLDEN)["upstream_lfq_tiny"]
UPSTREAM = GOLDEN / "upstream_lfq_tiny.ckpt"


@pytest.fixture(scope="module", autouse=True)
def networks_once():
    """Every configuration is built once: most of a conversion's time here."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(run, "manifest_of", functools.cache(manifest_of))
        yield


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("config") / "upstream.yaml"
    file.write_text(to_yaml(checkpoint_config(CASE)))
    return file


def call(*arguments):
    return convert.main([str(argument) for argument in arguments])


def same_arrays(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert array.dtype == theirs[name].dtype, name
        assert array.tobytes() == theirs[name].tobytes(), name


def sets_of(step):
    return read_step(step).weights


@pytest.fixture(scope="module")
def orbax(config_file, tmp_path_factory):
    """The upstream checkpoint as Orbax, both sets."""
    folder = tmp_path_factory.mktemp("orbax") / "converted"
    assert call(UPSTREAM, folder, "--config", config_file) == 0
    return folder


def test_lightning_to_orbax_and_back_is_bit_identical(orbax, tmp_path, capsys):
    original = torch_pickle.load_state_dict(UPSTREAM)
    assert call(orbax, tmp_path / "back.ckpt") == 0
    back = torch.load(tmp_path / "back.ckpt", weights_only=True)["state_dict"]
    assert len(back) == 2 * 81 + 2
    same_arrays(
        {k: np.asarray(v) for k, v in back.items() if "num_updates" not in k},
        {k: original[k] for k in back if "num_updates" not in k},
    )
    assert call(tmp_path / "back.ckpt", tmp_path / "again") == 0
    again = tmp_path / "again" / "checkpoints" / "1234"
    for kind, arrays in sets_of(orbax / "checkpoints" / "1234").items():
        same_arrays(arrays, sets_of(again)[kind])
    said = capsys.readouterr().out
    assert "keeps raw weights: 81 tensors" in said
    assert f"wrote {again}" in said


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors", "x.ckpt"])
def test_one_set_through_every_file_is_bit_identical(orbax, tmp_path, name):
    assert call(orbax, tmp_path / name, "--weights", "ema") == 0
    assert call(tmp_path / name, tmp_path / "again") == 0
    expected = sets_of(orbax / "checkpoints" / "1234")["ema"]
    same_arrays(sets_of(tmp_path / "again" / "checkpoints" / "1234")["ema"], expected)


@pytest.mark.parametrize("kind", ["ibq", "vq", "lfq"])
def test_near_ties_are_told_from_errors(kind):
    mapping = TINY if kind == "lfq" else quantized_by(kind, codes=4)
    quantizer = validate(mapping, kind).quantizer
    codes = None if kind == "lfq" else np.eye(4, 8, dtype=np.float32)
    if kind == "lfq":
        latents, ids, others = np.ones((1, 1, 3, 8)), [255, 255, 255], [255, 254, 254]
        lowest_bit_first = np.asarray(verify.lookup(quantizer, np.array([[[254]]]), None))[0, 0, 0] < 0
        latents[0, 0, 1] = np.where(lowest_bit_first, 1e-5, 1.0)
    else:
        latents, ids, others = np.zeros((1, 1, 3, 8)), [0, 0, 0], [0, 1, 1]
        latents[..., 0] = 1.0
        latents[0, 0, 1, 1] = 1 - 1e-5
    found = verify._near_ties(quantizer, latents, np.array([[ids]]), np.array([[others]]), codes)
    assert np.asarray(found)[0, 0].tolist() == [False, True, False]


def training_config(kind):
    """Chains of both lengths, both discriminators, and averages of several devices."""
    if kind == "lfq":
        return TINY | {"optimizer": TINY["optimizer"] | {"gradient_clip": 1.0, "weight_decay": 0.1}}
    blur = {"kind": "blur", "hidden_channels": 32, "stages": 1}
    return quantized_by("ibq") | {"discriminator": blur, "statistics_scope": "per_device"}


def random_state(config, devices):
    """A training state in which every number is another one."""
    mesh = make_mesh(config.mesh, jax.devices()[:devices])
    optimizer = build_optimizer(config.optimizer, lambda count, _: 1.0 + 0 * count)
    abstract = abstract_state(config, build_players(config), optimizer, mesh)
    rng = np.random.default_rng(0)

    def draw(leaf):
        integers = np.issubdtype(leaf.dtype, np.integer)
        values = rng.integers(0, 2**31, leaf.shape) if integers else 0.1 * rng.normal(size=leaf.shape)
        return jax.device_put(values.astype(leaf.dtype), leaf.sharding)

    state = jax.tree.map(draw, abstract)
    return abstract, same_counts(state).replace(step=np.int32(6), failure=np.int32(0))


def same_counts(state):
    """Both optimizers count their updates, and schedules and Adam count alike."""

    def fix(optimizer):
        return jax.tree.map(lambda leaf: np.int32(6) if leaf.ndim == 0 else leaf, optimizer)

    optimizers = ("generator_optimizer", "discriminator_optimizer")
    return dataclasses.replace(state, **{name: fix(getattr(state, name)) for name in optimizers})


@pytest.fixture(scope="module", params=["lfq", "ibq"])
def trained_state(request, tmp_path_factory):
    """(work directory, configuration, state, abstract state) as the JAX trainer saves it."""
    config = validate(training_config(request.param), request.param)
    abstract, state = random_state(config, devices=1 if request.param == "lfq" else 4)
    folder = tmp_path_factory.mktemp(request.param)
    checkpoints, iterator = (
        Checkpoints(folder, config.checkpoint),
        build_train_iterator(config.data, batch_size_per_process=8, seed=0),
    )
    next(iterator)
    checkpoints.save(state, config, iterator, {"psnr": 20.0})
    checkpoints.close()
    iterator.close()
    return folder, config, state, abstract


def test_a_training_state_moves_to_torch_and_back_bit_by_bit(trained_state, tmp_path):
    folder, config, state, abstract = trained_state
    assert call(folder, tmp_path / "torch", "--to", "torch") == 0
    assert {path.name for path in (tmp_path / "torch").iterdir()} == {"checkpoints", "config.yaml"}
    assert call(tmp_path / "torch", tmp_path / "jax") == 0
    iterator = build_train_iterator(config.data, batch_size_per_process=8, seed=0)
    checkpoints = Checkpoints(tmp_path / "jax", config.checkpoint)
    assert checkpoints.meta(6).metrics == {"psnr": 20.0}
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
    torch_state = create_torch_state(config)
    iterator = build_train_iterator(config.data, batch_size_per_process=8, seed=0)
    TorchCheckpoints(tmp_path / "run", config.checkpoint).restore(torch_state, iterator)
    assert (torch_state.step, iterator.position) == (6, 8)
    assert torch_state.rng.tolist() == np.asarray(state.rng).tolist()
    np.testing.assert_allclose(torch_state.lecam.real, np.mean(state.lecam.real), rtol=1e-6)
    kernel = np.asarray(
        state.generator_optimizer[1 if config.optimizer.gradient_clip else 0].nu["decoder.conv_out.kernel"]
    )
    moments = torch_state.to_dict()["generator_optimizer"]
    np.testing.assert_array_equal(moments["nu"]["decoder.conv_out.weight"], kernel.transpose(3, 2, 0, 1))
    assert int(moments["count"]) == 6
    torch_state.step = 7
    TorchCheckpoints(tmp_path / "run", config.checkpoint).save(torch_state, config, iterator, {})
    assert call(tmp_path / "run", tmp_path / "back", "--step", 7) == 0


def test_lightning_takes_the_discriminator_of_a_training_state(trained_state, tmp_path):
    folder, config, _, _ = trained_state
    assert call(folder, tmp_path / "x.ckpt") == 0
    state_dict = torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"]
    prefix = "loss.discriminator."
    whole = {key.removeprefix(prefix) for key in state_dict if key.startswith(prefix)}
    manifest = manifest_of(config)
    assert whole == manifest.discriminator.keys() | manifest.buffers.keys()
    assert sum(key.startswith("model_ema.lossdiscriminator") for key in state_dict) == len(manifest.discriminator)


def test_averages_of_other_numbers_of_devices_become_their_mean(trained_state):
    folder, config, state, _ = trained_state
    abstract, _ = random_state(config, devices=2)
    iterator = build_train_iterator(config.data, batch_size_per_process=8, seed=0)
    checkpoints = Checkpoints(folder, config.checkpoint)
    restored = checkpoints.restore(abstract, iterator)
    checkpoints.close()
    iterator.close()
    entries = 2 if config.statistics_scope == "per_device" else 1
    np.testing.assert_allclose(restored.lecam.real, np.full(entries, np.mean(state.lecam.real)), rtol=1e-6)


def test_verify_compares_both_frameworks(trained_state, tmp_path, capsys, monkeypatch):
    folder = trained_state[0]
    assert call(folder, tmp_path / "x.pt", "--verify") == 0
    said = capsys.readouterr().out
    for what in ("target in JAX", "source in PyTorch", "target in PyTorch"):
        assert re.search(rf"{what}: ids equal: 12\d of 128", said)
    monkeypatch.setattr(torch_bridge, "encode", lambda *_: np.zeros((2, 8, 8), np.int64))
    assert call(folder, tmp_path / "y.pt", "--verify") == convert.DIFFERS
    assert (tmp_path / "y.pt").exists()


def test_inference_checkpoints_open_directly(orbax, tmp_path, monkeypatch):
    assert call(orbax, tmp_path / "raw", "--weights", "raw") == 0
    assert call(orbax, tmp_path / "raw.safetensors", "--weights", "raw") == 0
    assert call(orbax, tmp_path / "x.pt") == 0
    raw, file = Tokenizer.load(tmp_path / "raw"), Tokenizer.load(tmp_path / "raw.safetensors")
    same_arrays(
        {k: np.asarray(v) for k, v in raw._weights.items()}, {k: np.asarray(v) for k, v in file._weights.items()}
    )
    with pytest.raises(CheckpointError, match="holds no generator_ema; it has raw"):
        Tokenizer.load(tmp_path / "raw", weights="ema")
    with pytest.raises(CheckpointError, match="holds the raw weights, not the ema ones"):
        Tokenizer.load(tmp_path / "raw.safetensors", weights="ema")
    monkeypatch.setenv("VOKEN_CACHE", str(tmp_path / "cache"))
    foreign = Tokenizer.load(tmp_path / "x.pt", weights="raw")
    same_arrays(
        {k: np.asarray(v) for k, v in raw._weights.items()}, {k: np.asarray(v) for k, v in foreign._weights.items()}
    )
    config = validate(TINY, "tiny")
    abstract, _ = random_state(config, 1)
    with pytest.raises(CheckpointError, match="weights for inference and no training state"):
        Checkpoints(tmp_path / "raw", config.checkpoint).restore(abstract, None)


class Harmful:
    """Leaves a mark when unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


def changed(change):
    """The upstream checkpoint with a changed state dict."""
    content = torch.load(UPSTREAM, weights_only=True)
    change(content["state_dict"])
    return content


def drop(weights):
    del weights["encoder.norm_out.weight"]


def add(weights):
    weights["encoder.norm_out.gain"] = torch.ones(3)


def reshape(weights):
    weights["decoder.conv_out.weight"] = weights["decoder.conv_out.weight"][..., :2]


def spoil(weights):
    weights["encoder.conv_in.weight"][0, 0, 0, 0] = float("nan")


def drop_average(weights):
    del weights["model_ema.encodernorm_outweight"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, "raw weights: 1 name(s) missing, 0 unexpected\n  missing: encoder.norm_out.weight"),
        (add, "unexpected: encoder.norm_out.gain"),
        (reshape, "decoder.conv_out.weight: found (3, 32, 3, 2), expected (3, 32, 3, 3)"),
        (spoil, "encoder.conv_in.weight of the raw weights: 1 of 864 values are NaN or infinite"),
        (drop_average, "averages: 1 name(s) missing, 0 unexpected\n  missing: model_ema.encodernorm_outweight"),
    ],
)
@pytest.mark.parametrize("name", ["out", "out.pt"])
def test_wrong_weights_write_nothing(tmp_path, config_file, capsys, change, message, name):
    source = tmp_path / "source" / "x.ckpt"
    source.parent.mkdir()
    torch.save(changed(change), source)
    assert call(source, tmp_path / "deep" / name, "--config", config_file) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_not_finite_weights_can_be_allowed(tmp_path, config_file):
    torch.save(changed(spoil), tmp_path / "x.ckpt")
    assert call(tmp_path / "x.ckpt", tmp_path / "x.pt", "--config", config_file, "--allow-nonfinite") == 0
    weights = torch.load(tmp_path / "x.pt", weights_only=True)["generator"]
    assert weights["encoder.conv_in.weight"].isnan().sum() == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (UPSTREAM.read_bytes()[:-1000], "damaged or incomplete"),
        (UPSTREAM.read_bytes()[:100_000], "damaged or incomplete"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "is no checkpoint: it starts with"),
        (b"", "is empty"),
    ],
    ids=["end missing", "most missing", "a picture", "empty"],
)
def test_damaged_files_write_nothing(tmp_path, config_file, capsys, content, message):
    source = tmp_path / "x.ckpt"
    source.write_bytes(content)
    assert call(source, tmp_path / "out", "--config", config_file) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["x.ckpt"]


def test_code_runs_only_where_that_is_asked_for(tmp_path, config_file, capsys):
    mark, source = tmp_path / "mark", tmp_path / "x.ckpt"
    torch.save(changed(lambda weights: None) | {"callbacks": Harmful(mark)}, source)
    options = (source, tmp_path / "out.pt", "--config", config_file)
    assert call(*options) == 2
    assert "refused: it names " in (said := capsys.readouterr().err)
    assert "--allow-pickle" in said
    assert [path.name for path in tmp_path.iterdir()] == ["x.ckpt"]
    assert call(*options, "--skip-objects") == 0
    assert not mark.exists()
    assert call(*options, "--allow-pickle", "--overwrite") == 0
    assert mark.exists()
    same = torch.load(tmp_path / "out.pt", weights_only=True)["generator"]
    assert torch.equal(same["encoder.conv_in.weight"], changed(lambda w: None)["state_dict"]["encoder.conv_in.weight"])


def test_a_damaged_step_writes_nothing(orbax, tmp_path, capsys):
    copy = shutil.copytree(orbax, tmp_path / "copy")
    (copy / "checkpoints" / "1234" / "generator" / "_METADATA").write_text("{")
    assert call(copy, tmp_path / "x.pt") == 2
    assert "generator/_METADATA has 1 bytes, " in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_a_write_that_fails_leaves_nothing(orbax, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(run, "write_step", fail)
    monkeypatch.setattr(torch_bridge, "save", fail)
    for name in ("out", "out.pt"):
        assert call(orbax, tmp_path / name) == 2
        assert "no space left" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_configurations_by_hand(tmp_path, config_file, capsys):
    other = json.loads(checkpoint_config(CASE).model_dump_json())
    other["model"]["residual_blocks"] = 2
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(json.dumps(other))
    assert call(UPSTREAM, tmp_path / "out", "--config", wrong) == 2
    assert "missing: decoder.mid_block.1.conv1.weight" in capsys.readouterr().err
    assert call(UPSTREAM, tmp_path / "out") == 2
    assert "carries no configuration and fits no published model" in (said := capsys.readouterr().err)
    assert "code_dim: found 10, expected 18" in said
    assert call(UPSTREAM, tmp_path / "out", "--config", "imagenet_lfqgan_256") == 2
    assert "did you mean imagenet_lfqgan_256_L" in capsys.readouterr().err
    assert call(UPSTREAM, tmp_path / "out", "--config", tmp_path / "none.yaml") == 2
    assert "no configuration file" in capsys.readouterr().err
    assert call(tmp_path / "none", tmp_path / "out") == 2
    assert "no such file or folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.yaml"]
