"""Training with fused kernels is training; torch_npu's fused optimizers need some care for that."""

import copy

import pytest
import torch

from tests.npu.inside.check_step import NPU, build, on_cpu, take
from tests.unit.tokenizer.test_torch_step import assert_same, config_of, images_of
from voken_common.errors import NonFiniteError
from voken_torch.device.runtime import Runtime

FUSED = Runtime(NPU.device, fused=True)
IBQ = config_of("ibq", "patchgan", dtype="float32", optimizer={"weight_decay": 0.1, "gradient_clip": 0.5})


@pytest.mark.parametrize("kind", ["lfq", "ibq"])
def test_fused_equals_plain(kind):
    config = config_of(kind, dtype="float32", optimizer={"gradient_accumulation": 2, "weight_decay": 0.1})
    (fused_step, fused), (plain_step, plain) = build(config, FUSED), build(config)
    for ours, theirs in zip(take(fused_step, fused, range(3)), take(plain_step, plain, range(3))):
        assert_same(ours, theirs, 1e-4)
    assert_same(on_cpu(fused), on_cpu(plain), 1e-4)
    assert int(fused.to_dict()["generator_optimizer"]["count"]) == 3


def test_a_loaded_state_is_the_one_that_continues():
    step, state = build(IBQ, FUSED)
    take(step, state, [0])
    saved = copy.deepcopy(state.to_dict())
    take(step, state, [1])
    expected = on_cpu(state)
    for steps_before in (0, 2):
        other_step, other = build(IBQ, FUSED)
        take(other_step, other, range(10, 10 + steps_before))
        other.load_dict(saved)
        take(other_step, other, [1])
        assert_same(on_cpu(other), expected, 1e-6)


@pytest.mark.parametrize("steps_before", [0, 1])
def test_a_failed_step_changes_nothing(steps_before):
    step, state = build(IBQ, FUSED)
    take(step, state, range(steps_before))
    before = on_cpu(state)
    codebook = state.players.autoencoder.codebook
    kept = codebook.detach().clone()
    with torch.no_grad():
        codebook.mul_(torch.inf)
    with pytest.raises(NonFiniteError):
        step(state, images_of().float())
    with torch.no_grad():
        codebook.copy_(kept)
    assert_same(on_cpu(state), before)
    twin_step, twin = build(IBQ, FUSED)
    take(twin_step, twin, range(steps_before))
    assert_same(take(step, state, [5])[0], take(twin_step, twin, [5])[0])
    assert_same(on_cpu(state), on_cpu(twin))
