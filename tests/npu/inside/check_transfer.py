"""Batches that are copied ahead: which stream does what, in which order, and who may read the memory."""

import threading

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from voken_torch.device import runtime as device
from voken_torch.device import transfer
from voken_torch.device.transfer import PlacedBatch, Transfer, on_device, one_ahead, placing

NPU = device.start("npu").device
COPY = "stream"


class Operations(TorchDispatchMode):
    """Adds what PyTorch computes, and on which stream, to the calls of streams."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function).removeprefix("aten.").split(".")[0]
        if name in ("_pin_memory", "_to_copy"):
            torch.npu.calls.append((torch.npu.current_stream().name, name))
        return function(*args, **(kwargs or {}))


@pytest.fixture
def calls(monkeypatch):
    record = torch.Tensor.record_stream

    def record_stream(tensor, stream):
        torch.npu.calls.append((stream.name, "record_stream"))
        record(tensor, stream)

    monkeypatch.setattr(torch.Tensor, "record_stream", record_stream)
    torch.npu.calls.clear()
    with Operations():
        yield torch.npu.calls


def batch_of(number):
    return {"image": np.full((2, 4, 4, 3), number, np.float32), "label": np.full(2, number, np.int32), "bad": [number]}


def by_stream(calls):
    return [(name.split()[0], what) for name, what in calls]


def test_copies_are_made_on_a_stream_of_their_own_and_waited_for(calls):
    placed = Transfer(NPU).start(batch_of(3))
    assert by_stream(calls) == [
        *[(COPY, "_pin_memory")] * 2,
        *[(COPY, "_to_copy")] * 2,
        (COPY, "record"),
    ]
    calls.clear()
    tensors = on_device(placed, NPU)
    assert by_stream(calls) == [("default", "wait"), *[("default", "record_stream")] * 2]
    assert {name: (tensor.device, tensor.dtype) for name, tensor in tensors.items()} == {
        "image": (NPU, torch.float32),
        "label": (NPU, torch.int32),
    }
    assert (tensors["image"] == 3).all()
    assert dict(placed).keys() == {"image", "label", "bad"}
    assert placed["image"] is not tensors["image"]


def test_a_thread_has_the_device_and_leaves_its_stream(calls):
    found = []

    def work(place):
        found.append((place(batch_of(1)), torch.npu.current_device(), torch.npu.current_stream().name))

    other = torch.device("npu", 1)
    thread = threading.Thread(target=work, args=(placing(other),))
    thread.start()
    thread.join()
    placed, current, stream = found[0]
    assert (current, stream) == (0, "default")
    assert {tensor.device for tensor in placed.flight.tensors.values()} == {other}


def test_validation_copies_the_next_batch_before_it_gives_this_one(calls):
    read = []

    def batches():
        for number in range(3):
            read.append(number)
            yield batch_of(number)

    for number, (batch, tensors) in enumerate(one_ahead(batches(), NPU)):
        assert isinstance(batch, PlacedBatch)
        assert (tensors["label"] == number).all()
        assert len(read) == min(number + 2, 3)
        calls.append(("default", "evaluated"))
    order = [what for _, what in by_stream(calls) if what in ("record", "evaluated")]
    assert order == ["record", "record", "evaluated", "record", "evaluated", "evaluated"]


def test_nothing_is_placed_on_the_cpu(calls):
    cpu = torch.device("cpu")
    assert placing(cpu) is None
    batch = {"image": np.zeros(2, np.float32)}
    ((same, tensors),) = one_ahead([batch], cpu)
    assert same is batch
    batch["image"][0] = 7
    assert tensors["image"][0] == 7
    assert not calls


def test_training_uses_it(monkeypatch, tmp_path):
    from tests.support.tiny import write
    from voken_torch.train import main

    landed = []
    land = transfer.Flight.land
    monkeypatch.setattr(transfer.Flight, "land", lambda flight: landed.append(flight) or land(flight))
    arguments = ["--config", write(tmp_path), "--workdir", tmp_path / "run", "--device", "npu"]
    assert main([*map(str, arguments), "--set", "training.steps=2", "--set", "validation.every=2"]) == 0
    assert len(landed) == 3, "two steps and one batch of validation"
    assert len({flight.arrived for flight in landed}) == 3
