"""Two processes on the CPU (gloo): one large batch with global statistics, averages of two with per-device ones."""

import os
import socket

import pytest
import torch
import torch.multiprocessing as multiprocessing

from tests.unit.tokenizer.test_torch_step import assert_same, build, config_of, flat, images_of
from voken_common.errors import NonFiniteError
from voken_torch.device import runtime as device
from voken_torch.parallel import sharding

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")

STEPS = 2
GLOBAL = {
    "lfq": config_of("lfq", "patchgan"),
    "adaptive": config_of("ibq", "patchgan", adversarial={"generator_weight": None, "lecam_weight": 0.5}),
    "micro-batches": config_of("ibq", "patchgan", optimizer={"gradient_accumulation": 2, "gradient_clip": 0.1}),
}
PER_DEVICE = config_of("lfq", "patchgan", statistics_scope="per_device")


def share(images, index, count):
    """One process's part of the batch: in one piece, so that micro-batches are the same images on any number."""
    return images.chunk(count)[index]


def run(config):
    """Metrics of every step, and the final state, of this process."""
    step, state = build(config)
    own = sharding.process_index(), sharding.process_count()
    metrics = [step(state, share(images_of(i), *own)) for i in range(STEPS)]
    return [flat(m) for m in metrics], flat(state.to_dict())


def failing(config):
    """The message of a failure that only the second process's images cause, and whether the state moved."""
    step, state = build(config)
    before = flat(state.to_dict())
    images = images_of()[:2]
    if sharding.process_index() == 1:
        images[0] = torch.nan
    try:
        step(state, images)
    except NonFiniteError as error:
        return str(error), all(torch.equal(value, before[key]) for key, value in flat(state.to_dict()).items())
    return "", False


def mean_and_gradient():
    """Mean of 1 and 2; its gradient where the two processes' slopes are 10 and 20."""
    x = torch.tensor(1.0 + sharding.process_index(), requires_grad=True)
    mean = sharding.reduce_mean(x)
    (mean * 10 * (1 + sharding.process_index())).backward()
    return mean.item(), x.grad.item()


def worker(rank, port, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    device.start("cpu")
    results = {name: run(config) for name, config in GLOBAL.items()}
    results["per device"] = run(PER_DEVICE)
    results["failure"] = failing(GLOBAL["adaptive"])
    results["mean"] = mean_and_gradient()
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What the two processes found."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(worker, (port, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", GLOBAL)
def test_global_statistics_are_those_of_one_large_batch(both, name):
    (metrics, state), (other_metrics, other_state) = (results[name] for results in both)
    assert_same(state, other_state)
    expected_metrics, expected_state = run(GLOBAL[name])
    for ours, theirs, expected in zip(metrics, other_metrics, expected_metrics):
        assert_same(ours, theirs)
        assert_same(ours, expected, 1e-8)
    assert_same(state, expected_state, 1e-7)


def test_per_device_statistics_are_means_over_devices(both):
    (metrics, state), (_, other_state) = (results["per device"] for results in both)
    assert_same(state, other_state)
    assert state["lecam/real"].shape == (2,)
    # In the first step both players still have their initial weights, so every logged mean is one of two lone runs.
    alone = []
    for rank in range(2):
        step, lone = build(PER_DEVICE)
        alone.append(step(lone, share(images_of(0), rank, 2)))
    for name, value in metrics[0].items():
        if not name.endswith("grad_norm"):
            torch.testing.assert_close(value, (alone[0][name] + alone[1][name]) / 2, rtol=1e-10, atol=1e-12)
    # Batch norm sees two images instead of four, so the scopes differ where they must.
    assert metrics[0]["logits_real"] != both[0]["lfq"][0][0]["logits_real"]


def test_a_failure_of_one_process_stops_all_of_them(both):
    for results in both:
        message, unmoved = results["failure"]
        assert "reconstruction_loss" in message
        assert unmoved


def test_reduce_mean_is_its_own_gradient(both):
    assert [results["mean"] for results in both] == [(1.5, 15.0)] * 2
