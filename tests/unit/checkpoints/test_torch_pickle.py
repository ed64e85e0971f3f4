"""Reading torch checkpoints without torch: every layout torch writes, and nothing that is not data."""

import io
import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

from voken_common.checkpoints import torch_pickle
from voken_common.checkpoints.torch_globals import Inert
from voken_common.errors import CheckpointError

GOLDEN = Path(__file__).parents[2] / "golden"
LAYOUTS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def save(obj, path, zipped):
    torch.save(obj, path, _use_new_zipfile_serialization=zipped)
    return path


def same(array, tensor):
    if tensor.dtype in (torch.bfloat16, torch.float8_e4m3fn):
        np.testing.assert_array_equal(array.astype(np.float32), tensor.float().numpy())
    else:
        np.testing.assert_array_equal(array, tensor.numpy())
        assert array.dtype == tensor.numpy().dtype


@LAYOUTS
@pytest.mark.parametrize(
    "dtype", "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64".split()
)
def test_every_dtype(tmp_path, zipped, dtype):
    tensor = torch.arange(24).reshape(2, 3, 4).to(getattr(torch, dtype))
    array = torch_pickle.load(save(tensor, tmp_path / "x.pt", zipped))
    assert array.shape == (2, 3, 4)
    assert array.flags.aligned
    assert not array.flags.writeable
    same(array, tensor)


def test_dtypes_without_a_storage_class(tmp_path):
    tensors = {
        "f8": torch.tensor([0.5, -2.0]).to(torch.float8_e4m3fn),
        "u16": torch.tensor([1, 60000]).to(torch.uint16),
    }
    arrays = torch_pickle.load(save(tensors, tmp_path / "x.pt", True))
    assert arrays["f8"].dtype == ml_dtypes.float8_e4m3fn
    same(arrays["f8"], tensors["f8"])
    assert arrays["u16"].tolist() == [1, 60000]


@LAYOUTS
def test_views_strides_and_shared_storage(tmp_path, zipped):
    base = torch.randn(6, 8)
    tensors = {
        "base": base,
        "transposed": base.t(),
        "column": base[:, 3],
        "block": base[1:4:2, 2:7],
        "expanded": base[0, :1].expand(5, 3),
        "channels_last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
    }
    arrays = torch_pickle.load(save(tensors, tmp_path / "x.pt", zipped))
    assert list(arrays) == list(tensors)
    for name, tensor in tensors.items():
        assert arrays[name].shape == tuple(tensor.shape)
        same(arrays[name], tensor)
    if zipped:
        assert np.shares_memory(arrays["base"], arrays["column"])


@LAYOUTS
def test_nested_lightning_checkpoint(tmp_path, zipped):
    weights = OrderedDict(a=torch.randn(3, 2), b=torch.nn.Parameter(torch.randn(4)))
    weights._metadata = OrderedDict(version=1)
    checkpoint = {
        "epoch": 3,
        "pytorch-lightning_version": "2.2.0",
        "state_dict": weights,
        "optimizer_states": [{"state": {0: {"step": torch.tensor(7.0), "pair": (torch.ones(2), None)}}, "lr": 1e-4}],
        "meta": {"size": torch.Size([2, 3]), "device": torch.device("cuda", 1), "dtype": torch.bfloat16, "set": {1, 2}},
    }
    read = torch_pickle.load(save(checkpoint, tmp_path / "x.ckpt", zipped))
    assert read["epoch"] == 3
    assert read["optimizer_states"][0]["lr"] == 1e-4
    assert read["optimizer_states"][0]["state"][0]["step"] == 7.0
    assert read["optimizer_states"][0]["state"][0]["pair"][0].tolist() == [1.0, 1.0]
    assert read["meta"] == {"size": (2, 3), "device": "cuda:1", "dtype": ml_dtypes.bfloat16, "set": {1, 2}}
    state = torch_pickle.load_state_dict(tmp_path / "x.ckpt")
    assert list(state) == ["a", "b"]
    same(state["b"], weights["b"].detach())


def test_module_state_dict_and_key_errors(tmp_path):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    path = save(module.state_dict(), tmp_path / "x.pt", True)
    state = torch_pickle.load_state_dict(path, key=None)
    for name, tensor in module.state_dict().items():
        same(state[name], tensor)
    with pytest.raises(CheckpointError, match=r"no entry 'state_dict'; found: 0\.weight, .*key=None"):
        torch_pickle.load_state_dict(path)
    with pytest.raises(CheckpointError, match="entry 'epoch' is int; expected only tensors"):
        torch_pickle.load_state_dict(save({"epoch": 1}, path, True), key=None)
    with pytest.raises(CheckpointError, match="expected a mapping of names to tensors, found list"):
        torch_pickle.load_state_dict(save([1], path, True), key=None)


class Runs:
    """Runs a command when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@LAYOUTS
@pytest.mark.parametrize("unknown", ["refuse", "inert"])
def test_nothing_is_executed(tmp_path, zipped, unknown):
    marker = tmp_path / "executed"
    path = save({"state_dict": {"a": torch.ones(2)}, "hook": Runs(marker)}, tmp_path / "x.pt", zipped)
    if unknown == "refuse":
        with pytest.raises(CheckpointError, match=r"x\.pt: refused: it names (posix|nt)\.system, which is not data"):
            torch_pickle.load(path)
    else:
        read = torch_pickle.load(path, unknown="inert")
        assert isinstance(read["hook"], Inert)
        assert read["hook"].arguments == (f"touch {marker}",)
        assert torch_pickle.load_state_dict(path, unknown="inert")["a"].tolist() == [1.0, 1.0]
    assert not marker.exists()


class Settings(dict):
    """A foreign container, as Lightning's hyper-parameters are."""


def test_foreign_objects_stay_inert(tmp_path):
    settings = Settings(lr=1.0)
    settings.note = "x"
    numbers = {"scalar": np.float64(2.0), "settings": settings, "path": Path("a/b"), "state_dict": {"w": torch.ones(1)}}
    path = save(numbers, tmp_path / "x.pt", True)
    with pytest.raises(CheckpointError, match="refused: it names .*Settings"):
        torch_pickle.load_state_dict(path)
    read = torch_pickle.load(path, unknown="inert")
    assert read["settings"].items == [("lr", 1.0)]
    assert read["settings"].state == {"note": "x"}
    assert read["path"].arguments == ("a", "b")
    assert read["state_dict"]["w"].tolist() == [1.0]


@pytest.mark.parametrize(
    "payload", [b"cbuiltins\neval\n(S'1'\ntR.", b"ccollections\nOrderedDict.__init__\n.", b"cos\npath\n."]
)
def test_a_bare_pickle_is_refused(tmp_path, payload):
    path = tmp_path / "x.pt"
    path.write_bytes(payload)
    with pytest.raises(CheckpointError, match="refused: it names"):
        torch_pickle.load(path)


def zip_of(pkl, path, data=b""):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pkl)
        archive.writestr("x/data/0", data)
    return path


STORAGE = b"(Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI4\ntQ"  # four floats under key 0
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


@pytest.mark.parametrize(
    "pkl",
    [
        REBUILD + b"(" + STORAGE + b"I0\n(I5\nt(I1\ntI00\nNtR.",  # one element too many
        REBUILD + b"(" + STORAGE + b"I-1\n(I2\nt(I1\ntI00\nNtR.",  # before the start
        REBUILD + b"(" + STORAGE + b"I0\n(I2\nt(I-1\ntI00\nNtR.",
        REBUILD + b"(" + STORAGE.replace(b"V0", b"V9") + b"I0\n(I2\nt(I1\ntI00\nNtR.",  # no such storage
        REBUILD + b"(" + STORAGE.replace(b"I4", b"I99") + b"I0\n(I2\nt(I1\ntI00\nNtR.",  # longer than its file
    ],
)
def test_a_tensor_cannot_reach_outside_its_storage(tmp_path, pkl):
    good = REBUILD + b"(" + STORAGE + b"I1\n(I3\nt(I1\ntI00\nNtR."
    data = np.arange(4, dtype=np.float32).tobytes()
    assert torch_pickle.load(zip_of(good, tmp_path / "good.pt", data)).tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(CheckpointError, match=r"damaged|incomplete"):
        torch_pickle.load(zip_of(pkl, tmp_path / "bad.pt", data))


@pytest.mark.parametrize("target", [b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n", STORAGE])
def test_state_cannot_be_set_on_what_the_reader_provides(tmp_path, target):
    with pytest.raises(CheckpointError, match="expected data only"):
        torch_pickle.load(zip_of(target + b"}b.", tmp_path / "x.pt"))


def test_attributes_of_a_container_are_dropped(tmp_path):
    pkl = b"ccollections\nOrderedDict\n(tR}Vitems\nI1\nsb."
    read = torch_pickle.load(zip_of(pkl, tmp_path / "x.pt"))
    assert read == OrderedDict()
    assert list(read.items()) == []


@LAYOUTS
@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_truncation_is_reported(tmp_path, zipped, keep):
    path = save({"a": torch.randn(100, 10), "b": torch.randn(7)}, tmp_path / "x.pt", zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(CheckpointError, match=r"x\.pt.*(empty|damaged|incomplete|not a torch)"):
        torch_pickle.load(path)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_other_files_are_refused(tmp_path):
    path = tmp_path / "x.pt"
    with pytest.raises(FileNotFoundError, match="no checkpoint file"):
        torch_pickle.load(path)
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(CheckpointError, match="not a torch checkpoint"):
        torch_pickle.load(path)
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(CheckpointError, match=r"a pickle, but not one of torch\.save"):
        torch_pickle.load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "x")
    with pytest.raises(CheckpointError, match=r"without data\.pkl"):
        torch_pickle.load(path)
    scripted = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), scripted)
    path.write_bytes(scripted.getvalue())
    with pytest.raises(CheckpointError, match="TorchScript"):
        torch_pickle.load(path)


def test_a_compressed_archive_reads(tmp_path):
    source = save({"a": torch.arange(5.0)}, tmp_path / "x.pt", True)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(tmp_path / "y.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert torch_pickle.load(tmp_path / "y.pt")["a"].tolist() == [0, 1, 2, 3, 4]


def test_published_layout_reads_as_torch_reads_it():
    path = GOLDEN / "upstream_lfq_tiny.ckpt"
    ours = torch_pickle.load_state_dict(path)
    theirs = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        same(ours[name], tensor)


def test_large_files_cost_no_memory(tmp_path):
    path = save({"state_dict": {"a": torch.zeros(16, 1024, 1024)}}, tmp_path / "x.pt", True)  # 64 MB
    code = (
        "import resource, sys; from voken_common.checkpoints import torch_pickle; "
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; "
        "state = torch_pickle.load_state_dict(sys.argv[1]); assert state['a'].shape == (16, 1024, 1024); "
        "assert 'torch' not in sys.modules; "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    result = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 20_000, "kilobytes above the imports"
