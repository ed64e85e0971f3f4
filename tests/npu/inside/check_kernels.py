"""A generator with an NPU's fused kernels against the plain computation: each kernel, training, sampling."""

import pytest
import torch

from tests.multidevice.test_torch_sharded import generator_of, tokens_of
from tests.npu.inside.check_step import CPU, NPU
from tests.unit.tokenizer.test_torch_step import assert_same
from voken_common.config.schedules import build_schedule
from voken_common.config.schema.sampling import Sampling
from voken_torch.device.kernels import PLAIN
from voken_torch.device.runtime import NPU_KERNELS, DeviceError, Runtime
from voken_torch.generator.sampling import generate
from voken_torch.generator.step import GeneratorStep, create_generator_state
from voken_torch.models.generator import build_generator

FUSED = Runtime(NPU.device, fused=True)
SINGLE = {"precision": {"param_dtype": "float32", "compute_dtype": "float32"}}


def random(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


CASES = {
    "attention": [(random(2, 3, 5, 8), random(2, 3, 5, 8) + 1, random(2, 3, 5, 8) - 1, None, True)],
    "rotate": [(random(2, 3, 5, 8), random(5, 4), random(5, 4) + 1)],
    "rms_norm": [(random(2, 5, 8), random(8), 1e-5)],
    "swiglu": [(random(2, 5, 8), random(2, 5, 8) + 1)],
}
VISIBLE = torch.tensor([[True, True, False, True, False]])
CASES["attention"].append((random(2, 3, 1, 8), random(2, 3, 5, 8), random(2, 3, 5, 8) - 1, VISIBLE, False))
CASES["attention"].append((random(2, 3, 1, 8), random(2, 3, 5, 8), random(2, 3, 5, 8) - 1, None, False))


@pytest.mark.parametrize(
    ("name", "arguments"), [(name, arguments) for name, each in CASES.items() for arguments in each]
)
def test_each_kernel_is_the_plain_computation(name, arguments):
    placed = [part.to(NPU.device) if isinstance(part, torch.Tensor) else part for part in arguments]
    fused = getattr(NPU_KERNELS, name)(*placed)
    assert fused.device == NPU.device
    torch.testing.assert_close(fused.cpu(), getattr(PLAIN, name)(*arguments), rtol=1e-5, atol=1e-6)


def test_only_fused_npus_have_them():
    assert FUSED.kernels() is NPU_KERNELS
    assert NPU.kernels() is CPU.kernels() is Runtime(CPU.device, fused=True).kernels() is PLAIN


def losses(config, runtime):
    state = create_generator_state(config, runtime)
    kinds = {type(module.kernels) for module in state.network.modules() if hasattr(module, "kernels")}
    assert len(kinds) == 1
    schedule = build_schedule(config, 1, config.training.steps)
    step = GeneratorStep(config, state, schedule, config.training.steps, runtime)
    found = []
    for number in range(4):
        batch = {name: value.to(runtime.device) for name, value in tokens_of(config, number).items()}
        found.append({name: value.detach().cpu() for name, value in step(state, batch).items()})
    return found


@pytest.mark.parametrize("network", ["factorized", "adaptive"])
def test_training(network):
    config = generator_of(network, **SINGLE)
    for fused, plain in zip(losses(config, FUSED), losses(config, CPU)):
        assert_same(fused, plain, 1e-4)


@pytest.mark.parametrize("network", ["factorized", "adaptive"])
def test_greedy_tokens(network):
    config, tokens = generator_of(network, **SINGLE).model, []
    parts = len(config.vocabularies)
    settings = Sampling((2.0,) * parts, (0.0,) * parts, (0,) * parts, (1.0,) * parts)
    plain = build_generator(config).eval().requires_grad_(False)
    weights = {name: torch.randn_like(value) / 4 for name, value in plain.state_dict().items()}
    for runtime in (FUSED, CPU):
        network = build_generator(config, kernels=runtime.kernels()).eval().requires_grad_(False).to(runtime.device)
        network.load_state_dict(weights)
        labels = torch.tensor([0, 2], device=runtime.device)
        tokens.append(generate(network, labels, [1, 2], settings).cpu())
    assert torch.equal(*tokens)


def test_a_kernel_that_is_not_there_is_an_error(monkeypatch):
    import torch_npu

    monkeypatch.delattr(torch_npu, "npu_swiglu")
    with pytest.raises(DeviceError, match=r"torch_npu\.npu_swiglu is not there .*run without fused kernels"):
        NPU_KERNELS.swiglu(random(1, 2, 4), random(1, 2, 4))
