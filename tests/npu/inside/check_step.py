"""Training steps against those on the CPU; mixed precision, averages, state through a file, dropout."""

import pytest
import torch

from tests.unit.tokenizer.test_torch_step import assert_same, config_of, flat, images_of
from voken_common.config.schedules import build_schedule
from voken_torch.device import runtime as device
from voken_torch.device.runtime import Runtime
from voken_torch.tokenizer.state import create_state
from voken_torch.tokenizer.step import TokenizerStep

NPU = device.start("npu")
CPU = Runtime()


def build(config, runtime=NPU):
    state = create_state(config, runtime)
    return TokenizerStep(config, state, build_schedule(config, 10, config.training.steps), runtime), state


def take(step, state, numbers):
    """Metrics of the steps of these numbers, on the CPU; images follow from the number."""
    metrics = [step(state, images_of(number).float()) for number in numbers]
    return [{name: value.detach().cpu() for name, value in values.items()} for values in metrics]


def on_cpu(state):
    return {name: value.cpu() for name, value in flat(state.to_dict()).items()}


@pytest.mark.parametrize(("kind", "discriminator"), [("lfq", "blur"), ("ibq", "patchgan")])
def test_twenty_steps_have_the_losses_of_the_cpu(kind, discriminator):
    # The published rate. At ten times that, training on noise turns the rounding of another order of summation, which
    # IBQ has on the CPU, into differences of 1e-2 within these steps.
    optimizer = {"learning_rate": 1e-4}
    config = config_of(kind, discriminator, dtype="float32", optimizer=optimizer, adversarial={"lecam_weight": 0.01})
    ours, expected = (take(*build(config, runtime), range(20)) for runtime in (NPU, CPU))
    for metrics, reference in zip(ours, expected):
        losses = [name for name in reference if name.endswith("loss")]
        assert_same({name: metrics[name] for name in losses}, {name: reference[name] for name in losses}, 1e-4)


@pytest.mark.parametrize("kind", ["lfq", "ibq"])
def test_mixed_precision(kind):
    config = config_of(kind, "patchgan", precision={"param_dtype": "float32", "compute_dtype": "bfloat16"})
    step, state = build(config)
    metrics = take(step, state, range(2))
    assert {value.dtype for values in metrics for value in values.values()} == {torch.float32}
    assert all(value.isfinite() for values in metrics for value in values.values())
    assert {value.dtype for value in state.generator.values()} == {torch.float32}
    assert {value.device for value in state.generator.values()} == {NPU.device}
    exact = take(*build(config_of(kind, "patchgan", dtype="float32")), range(1))[0]["reconstruction_loss"]
    assert metrics[0]["reconstruction_loss"] != exact
    assert metrics[0]["reconstruction_loss"].item() == pytest.approx(exact.item(), rel=0.05)


def test_averages_follow_the_parameters():
    step, state = build(config_of(dtype="float32", optimizer={"ema_decay": 0.9}))
    expected = {name: value.clone() for name, value in state.generator_ema.items()}
    for number in range(2):
        take(step, state, [number])
        expected = {name: 0.9 * value + 0.1 * state.generator[name] for name, value in expected.items()}
    assert_same(state.generator_ema, expected, 1e-6)


def test_state_goes_through_a_file_and_other_devices(tmp_path):
    config = config_of("ibq", "patchgan", dtype="float32", model={"dropout": 0.1})
    step, state = build(config)
    take(step, state, range(2))
    torch.save(state.to_dict(), tmp_path / "npu.pt")
    expected = take(step, state, range(2, 4)), on_cpu(state)

    on_the_cpu = create_state(config)
    on_the_cpu.load_dict(torch.load(tmp_path / "npu.pt", map_location="cpu", weights_only=True))
    torch.save(on_the_cpu.to_dict(), tmp_path / "cpu.pt")
    step, state = build(config)
    state.load_dict(torch.load(tmp_path / "cpu.pt", weights_only=True))
    metrics = take(step, state, range(2, 4))
    for ours, theirs in zip(metrics, expected[0]):
        assert_same(ours, theirs)
    assert_same(on_cpu(state), expected[1])


def test_dropout_follows_from_the_state_alone():
    config = config_of("ibq", dtype="float32", model={"dropout": 0.5})
    results = []
    for noise in (0, 1):
        torch.manual_seed(noise)
        results.append(take(*build(config), range(1))[0])
    assert_same(*results)
    assert take(*build(config_of("ibq", dtype="float32")), range(1))[0]["total_loss"] != results[0]["total_loss"]
