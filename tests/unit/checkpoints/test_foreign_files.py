"""Checkpoints as other programs write them: wrapped, partial, with scalars and objects among them, of an NPU."""

import pickle
import sys
import types
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from voken_common.checkpoints import torch_pickle
from voken_common.checkpoints.conversion.formats import read_file
from voken_common.errors import CheckpointError, RefusedError
from voken_torch.tokenizer.api import Tokenizer

GOLDEN = Path(__file__).parents[2] / "golden" / "upstream_lfq_tiny.ckpt"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VOKEN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def original():
    return torch.load(GOLDEN, weights_only=True)


@pytest.fixture(scope="module")
def images():
    return torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (1, 3, 32, 32)).astype(np.float32))


@pytest.fixture(scope="module")
def expected(original, images):
    """Ids with the averages, and with the raw weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VOKEN_CACHE", str(GOLDEN.parents[2] / ".cache" / "foreign"))
        return {kind: Tokenizer.load(GOLDEN, weights=kind).encode(images) for kind in ("ema", "raw")}


class Settings:
    """An object of another program."""


def wrapped(state, wrapper):
    """Names as a wrapper of the whole network makes them; averages lose the dots of theirs."""
    renamed = {}
    for key, value in state.items():
        if key.startswith("model_ema.") and key not in ("model_ema.decay", "model_ema.num_updates"):
            key = "model_ema." + wrapper.replace(".", "") + key.removeprefix("model_ema.")
        else:
            key = f"{wrapper}{key}"
        renamed[key] = value
    return renamed


def inside(state):
    """Both networks compiled, each by itself."""
    renamed = {}
    for key, value in state.items():
        for part in ("encoder", "decoder"):
            if key.startswith(f"{part}."):
                key = key.replace(part, f"{part}._orig_mod", 1)
            key = key.replace(f"model_ema.{part}", f"model_ema.{part}_orig_mod")
        renamed[key] = value
    return renamed


def only(state, *prefixes):
    return {key: value for key, value in state.items() if key.startswith(prefixes)}


NETWORKS = ("encoder.", "decoder.")
CASES = {
    "as it is": lambda root: root,
    "state dict alone": lambda root: root["state_dict"],
    "module.": lambda root: {"state_dict": wrapped(root["state_dict"], "module.")},
    "_orig_mod.": lambda root: {"state_dict": wrapped(root["state_dict"], "_orig_mod.")},
    "module._orig_mod.": lambda root: {"state_dict": wrapped(root["state_dict"], "module._orig_mod.")},
    "parts compiled": lambda root: {"state_dict": inside(root["state_dict"])},
    "no loss": lambda root: {"state_dict": only(root["state_dict"], *NETWORKS, "model_ema.")},
    "no averages": lambda root: {"state_dict": only(root["state_dict"], *NETWORKS, "loss.")},
    "weights only": lambda root: {"model": OrderedDict(only(root["state_dict"], *NETWORKS))},
    "nested": lambda root: {"model": {"state_dict": only(root["state_dict"], *NETWORKS)}, "epoch": 3},
    "numpy numbers": lambda root: root | {"global_step": np.int64(7), "best": np.float32(0.5), "flag": np.bool_(True)},
    "step is a tensor": lambda root: root | {"global_step": torch.tensor(7)},
    "objects beside": lambda root: root | {"hyper_parameters": Settings(), "callbacks": {"a": Settings()}},
    "parameters": lambda root: {"state_dict": {k: as_parameter(v) for k, v in root["state_dict"].items()}},
    "views": lambda root: {
        "state_dict": {
            k: v.double().to(v.dtype).T.contiguous().T if v.ndim == 2 else v for k, v in root["state_dict"].items()
        }
    },
    "double": lambda root: {"state_dict": {k: v.double() for k, v in root["state_dict"].items()}},
}
RAW = ("no averages", "weights only", "nested")


def as_parameter(value):
    return torch.nn.Parameter(value, requires_grad=False) if value.is_floating_point() else value


@pytest.mark.parametrize("name", CASES)
def test_loads(original, images, expected, tmp_path, name):
    torch.save(CASES[name](original), tmp_path / "x.ckpt")
    ids = Tokenizer.load(tmp_path / "x.ckpt").encode(images)
    assert torch.equal(ids, expected["raw" if name in RAW else "ema"])


def test_averages_beside_the_weights(original, images, expected, tmp_path):
    state = original["state_dict"]
    averages = {key: state["model_ema." + key.replace(".", "")] for key in state if key.startswith(NETWORKS)}
    torch.save({"model": only(state, *NETWORKS), "ema": averages, "steps": 3}, tmp_path / "x.pt")
    for kind in ("ema", "raw"):
        assert torch.equal(Tokenizer.load(tmp_path / "x.pt", weights=kind).encode(images), expected[kind])


def test_the_second_load_reads_the_cache(original, images, expected, tmp_path, monkeypatch):
    torch.save(original, tmp_path / "x.ckpt")
    Tokenizer.load(tmp_path / "x.ckpt")
    (converted,) = (tmp_path / "cache" / "converted").rglob("*.safetensors")
    monkeypatch.setattr(torch_pickle, "load", None)
    assert torch.equal(Tokenizer.load(tmp_path / "x.ckpt").encode(images), expected["ema"])
    monkeypatch.undo()
    monkeypatch.setenv("VOKEN_CACHE", str(tmp_path / "cache"))
    # The cache goes by content: another file of that name is another model.
    changed = {
        key: value * 1.5 if value.is_floating_point() else value for key, value in original["state_dict"].items()
    }
    torch.save({"state_dict": changed}, tmp_path / "x.ckpt")
    Tokenizer.load(tmp_path / "x.ckpt")
    assert len(list((tmp_path / "cache" / "converted").rglob("*.safetensors"))) == 2
    assert converted.is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: root | {"state_dict": Settings()}, "state_dict is a skipped object, tests.*Settings"),
        (lambda root: root | {"global_step": Settings()}, "global_step is a skipped object, tests.*Settings"),
        (
            lambda root: {"state_dict": root["state_dict"] | {"encoder.conv_in.weight": Settings()}},
            "holds .*'encoder.conv_in.weight': 'a skipped object, tests.*Settings",
        ),
        (lambda root: {"state_dict": without(root["state_dict"], "encoder.conv_in.weight")}, "fits no published model"),
        (
            lambda root: {"state_dict": without(root["state_dict"], "model_ema.encoderconv_inweight")},
            "averages: 1 name.s. missing(.|\n)*encoderconv_inweight",
        ),
        (lambda root: {"state_dict": root["state_dict"] | {"a.module.b": torch.ones(1)}}, "unexpected weight.*a.b"),
        (lambda root: {"state_dict": not_finite(root["state_dict"])}, "1 tensor.s. are not finite"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_left(original, tmp_path, change, message):
    torch.save(change(original), tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=message):
        Tokenizer.load(tmp_path / "x.ckpt")
    assert not list((tmp_path / "cache").rglob("*.safetensors*"))


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


def not_finite(state):
    name = "model_ema.encoderconv_inweight"
    return state | {name: state[name] * float("nan")}


@pytest.mark.parametrize("value", [np.float64(1.5), np.float32(-2), np.int64(2**40), np.uint8(7), np.bool_(True)])
@pytest.mark.parametrize("protocol", [2, 4])
def test_numpy_scalars_are_numbers(tmp_path, value, protocol):
    torch.save({"value": value}, tmp_path / "x.pt", pickle_protocol=protocol)
    found = torch_pickle.load(tmp_path / "x.pt")["value"]
    assert type(found) is type(value.item())
    assert found == value.item()


@pytest.mark.parametrize("value", [np.dtype("O"), np.dtype([("a", "f4")]), np.datetime64("2024-01-01"), np.ones(2)])
def test_other_objects_of_numpy_are_refused(tmp_path, value):
    torch.save({"value": value}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError):
        torch_pickle.load(tmp_path / "x.pt")


def test_a_scalar_with_the_wrong_number_of_bytes_is_refused(tmp_path):
    class Short:
        def __reduce__(self):
            return np.float32(0).__reduce__()[0], (np.dtype("f4"), b"123")

    torch.save({"value": Short()}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="no number"):
        torch_pickle.load(tmp_path / "x.pt")


class NPUTensor:
    """Pickles as torch_npu pickles a tensor."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __reduce_ex__(self, protocol):
        tensor = self.tensor
        storage = torch.storage.TypedStorage(wrap_storage=tensor.untyped_storage(), dtype=tensor.dtype, _internal=True)
        where = (storage, tensor.storage_offset(), tuple(tensor.shape), tensor.stride())
        return sys.modules["torch_npu.utils.storage"]._rebuild_npu_tensor, (*where, False, OrderedDict(), 2)


def test_tensors_that_torch_npu_pickled(original, images, expected, tmp_path, monkeypatch):
    def _rebuild_npu_tensor(*arguments):
        raise AssertionError("nothing calls it")

    for name in ("torch_npu", "torch_npu.utils", "torch_npu.utils.storage"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    _rebuild_npu_tensor.__module__, _rebuild_npu_tensor.__qualname__ = "torch_npu.utils.storage", "_rebuild_npu_tensor"
    sys.modules["torch_npu.utils.storage"]._rebuild_npu_tensor = _rebuild_npu_tensor
    state = {key: NPUTensor(value) for key, value in original["state_dict"].items()}
    torch.save({"state_dict": state}, tmp_path / "x.ckpt")
    for name in ("torch_npu", "torch_npu.utils", "torch_npu.utils.storage"):
        monkeypatch.delitem(sys.modules, name)
    assert b"_rebuild_npu_tensor" in (tmp_path / "x.ckpt").read_bytes()
    assert torch.equal(Tokenizer.load(tmp_path / "x.ckpt").encode(images), expected["ema"])
    views = NPUTensor(torch.arange(12.0).reshape(3, 4).T[1:])
    monkeypatch.setitem(sys.modules, "torch_npu", types.ModuleType("torch_npu"))
    monkeypatch.setitem(sys.modules, "torch_npu.utils", types.ModuleType("torch_npu.utils"))
    storage = types.ModuleType("torch_npu.utils.storage")
    storage._rebuild_npu_tensor = _rebuild_npu_tensor
    monkeypatch.setitem(sys.modules, "torch_npu.utils.storage", storage)
    torch.save({"view": views}, tmp_path / "y.pt")
    np.testing.assert_array_equal(torch_pickle.load(tmp_path / "y.pt")["view"], views.tensor.numpy())


def test_other_names_of_torch_npu_are_refused(tmp_path):
    root = b"ctorch_npu.utils.storage\nsave\n."
    (tmp_path / "x.pt").write_bytes(
        pickle.dumps(0x1950A86A20F9469CFC6C, 2)
        + pickle.dumps(1001, 2)
        + pickle.dumps({"little_endian": True}, 2)
        + root
    )
    with pytest.raises(RefusedError, match=r"names torch_npu\.utils\.storage\.save, which is not data"):
        read_file(tmp_path / "x.pt")
