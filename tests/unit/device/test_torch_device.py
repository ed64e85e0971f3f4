"""Choice of device: what is there, what is missing and how to get it, and no silent change of either."""

import sys
import types

import pytest
import torch

from voken_torch.device import runtime as device
from voken_torch.device.runtime import DeviceError, Runtime
from voken_torch.models.layers import plain_attention


@pytest.fixture
def without_npu(monkeypatch):
    """As where torch_npu is not installed."""
    monkeypatch.delattr(torch, "npu", raising=False)
    monkeypatch.setitem(sys.modules, "torch_npu", None)
    find = device.importlib.util.find_spec
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: None if name == "torch_npu" else find(name))


@pytest.fixture
def with_broken_npu(monkeypatch):
    """As where torch_npu is installed without CANN."""
    monkeypatch.delattr(torch, "npu", raising=False)
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: object())

    def fail(name):
        raise ImportError("libhccl.so: cannot open shared object file")

    monkeypatch.setattr(device.importlib, "import_module", fail)


def no_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_auto_takes_the_cpu_where_nothing_else_is(without_npu, monkeypatch):
    no_cuda(monkeypatch)
    assert device.resolve("auto") == torch.device("cpu")


def test_npu_without_torch_npu_says_how_to_get_it(without_npu):
    with pytest.raises(
        DeviceError, match=r"torch_npu is not installed(.|\n)*set_env.sh(.|\n)*voken\[npu\](.|\n)*2\.13"
    ):
        device.resolve("npu")


@pytest.mark.parametrize("name", ["npu", "auto"])
def test_a_broken_installation_is_not_passed_over(with_broken_npu, name):
    with pytest.raises(DeviceError, match=r"torch_npu does not load: libhccl.so(.|\n)*CANN"):
        device.resolve(name)


def test_cuda_without_a_device(monkeypatch):
    no_cuda(monkeypatch)
    with pytest.raises(DeviceError, match="no CUDA device: .*--device cpu"):
        device.resolve("cuda")


def test_more_processes_than_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device.resolve("cuda", 1) == torch.device("cuda", 1)
    with pytest.raises(DeviceError, match="process 2 of this machine has no cuda device: 2 visible"):
        device.resolve("cuda", 2)


def test_an_unknown_device():
    with pytest.raises(DeviceError, match="device is 'tpu': expected one of auto, npu, cuda, cpu"):
        device.resolve("tpu")


def test_backends():
    assert device.BACKENDS == {"npu": "hccl", "cuda": "nccl", "cpu": "gloo"}


def test_float64_is_refused_on_an_npu():
    # The device type needs no backend to be named: privateuseone is what `npu` is called before it is registered.
    runtime = Runtime(types.SimpleNamespace(type="npu"))
    with pytest.raises(DeviceError, match="float64.*--device cpu"):
        runtime.check_precision("float32", "float64")
    runtime.check_precision("float32", "bfloat16")
    Runtime().check_precision("float64")


def test_fused_kernels_are_asked_for():
    assert Runtime().attention() is None
    assert Runtime().adamw() is torch.optim.AdamW
    q, k, v = torch.randn(3, 2, 5, 8).unbind()
    fused = Runtime(fused=True).attention()
    torch.testing.assert_close(fused(q, k, v, 0.3), plain_attention(q, k, v, 0.3))


@pytest.mark.parametrize("name", ["optim.NpuFusedAdamW", "npu_fusion_attention"])
def test_missing_fused_kernels_are_an_error(without_npu, name):
    with pytest.raises(DeviceError, match=rf"torch_npu.{name} is not there"):
        device._torch_npu(name)


def test_npu_attention_hands_over_the_layout(monkeypatch):
    seen = {}

    def fusion(q, k, v, head_num, input_layout, scale):
        seen.update(head_num=head_num, input_layout=input_layout)
        return plain_attention(q, k, v, scale), None

    monkeypatch.setitem(sys.modules, "torch_npu", types.SimpleNamespace(npu_fusion_attention=fusion))
    q, k, v = torch.randn(3, 2, 5, 8).unbind()
    attention = Runtime(types.SimpleNamespace(type="npu"), fused=True).attention()
    torch.testing.assert_close(attention(q, k, v, 0.3), plain_attention(q, k, v, 0.3))
    assert seen == {"head_num": 1, "input_layout": "BSH"}


def test_numerics_switches(monkeypatch):
    monkeypatch.setattr(device.os, "environ", dict(device.os.environ))
    before = torch.are_deterministic_algorithms_enabled()
    try:
        device.set_numerics(torch.device("cpu"), full_precision=True, deterministic=True)
        assert torch.get_float32_matmul_precision() == "highest"
        assert torch.are_deterministic_algorithms_enabled()
        assert device.os.environ["HCCL_DETERMINISTIC"] == "true"
    finally:
        torch.use_deterministic_algorithms(before)


def test_hf32_is_switched_off_where_there_is_a_switch(monkeypatch):
    switches = types.SimpleNamespace(
        conv=types.SimpleNamespace(allow_hf32=True), matmul=types.SimpleNamespace(allow_hf32=True)
    )
    monkeypatch.setattr(torch, "get_device_module", lambda _: switches)
    device.set_numerics(types.SimpleNamespace(type="npu"), full_precision=True, deterministic=False)
    assert not switches.conv.allow_hf32
    assert not switches.matmul.allow_hf32


def test_what_torchrun_says(monkeypatch):
    for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(key, raising=False)
    assert device.launched() == (0, 1, 0)
    for key, value in (("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(key, value)
    assert device.launched() == (5, 8, 1)
