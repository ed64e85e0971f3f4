"""The device layer: choice, precision, random numbers, and refusals."""

import pytest
import torch
import torch.nn.functional as F

from tests.unit.tokenizer.test_torch_step import config_of
from voken_torch.device import runtime as device
from voken_torch.device.runtime import DeviceError, Runtime
from voken_torch.models.layers import plain_attention
from voken_torch.tokenizer.state import create_state

RUNTIME = device.start("npu")
NPU = RUNTIME.device


def test_start_takes_the_npu():
    assert torch.device("npu", 0) == NPU
    assert device.resolve("auto") == NPU
    assert torch.empty(1, device=NPU).is_npu
    with pytest.raises(DeviceError, match="process 2 of this machine has no npu device: 2 visible"):
        device.resolve("npu", 2)


@pytest.mark.parametrize("other", ["cpu", "npu:1"])
def test_devices_do_not_mix(other):
    with pytest.raises(RuntimeError, match="device"):
        torch.ones(2, device=NPU) + torch.ones(2, device=other)


def test_float64_is_refused():
    with pytest.raises(DeviceError, match=r"float64.*--device cpu"):
        create_state(config_of(dtype="float64"), RUNTIME)


def test_autocast_chooses_by_operator():
    x, weight = torch.ones(2, 3, 8, 8, device=NPU), torch.ones(4, 3, 3, 3, device=NPU)
    with RUNTIME.autocast("bfloat16"):
        y = F.conv2d(x, weight)
        assert y.dtype == torch.bfloat16
        assert (y.flatten(1) @ y.flatten(1).mT).dtype == torch.bfloat16
        assert F.group_norm(y, 2).dtype == torch.float32
        assert F.mse_loss(y, y).dtype == torch.float32
        assert y.softmax(1).dtype == torch.float32
        assert torch.addcmul(y, y, y.float()).dtype == torch.float32
    with RUNTIME.autocast("float32"):
        assert F.conv2d(x, weight).dtype == torch.float32


def test_random_numbers_are_put_back():
    before = torch.get_rng_state(), torch.npu.get_rng_state()
    with RUNTIME.forked_random_state():
        torch.manual_seed(3)
        first = torch.rand(4, device=NPU).tolist()
    with RUNTIME.forked_random_state():
        torch.manual_seed(3)
        assert torch.rand(4, device=NPU).tolist() == first
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.equal(torch.npu.get_rng_state(), before[1])
    assert torch.rand(4, device=NPU).tolist() != first


def test_full_precision_switches_hf32_off():
    assert torch.npu.conv.allow_hf32
    device.set_numerics(NPU, full_precision=True, deterministic=False)
    assert not torch.npu.conv.allow_hf32
    assert not torch.npu.matmul.allow_hf32


def test_fused_attention_is_attention():
    q, k, v = (x.to(NPU).requires_grad_() for x in torch.randn(3, 2, 5, 8).unbind())
    results = []
    for attention in (plain_attention, Runtime(NPU, fused=True).attention()):
        mixed = attention(q, k, v, 0.3)
        results.append((mixed, *torch.autograd.grad(mixed.square().sum(), (q, k, v))))
    for plain, fused in zip(*results):
        torch.testing.assert_close(plain, fused)
