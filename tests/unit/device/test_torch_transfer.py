"""Copies ahead of the step, told by a device that only writes down what is asked of it; and none on the CPU.

tests/npu/inside/check_transfer.py looks at the same on the simulated NPU.
"""

import contextlib

import numpy as np
import pytest
import torch

from voken_torch.device.transfer import PlacedBatch, Transfer, on_device, one_ahead, placing

CPU = torch.device("cpu")


class Stream:
    def __init__(self, calls, name):
        self.calls, self.name = calls, name

    def record_event(self):
        self.calls.append(f"record on {self.name}")
        return f"event {len(self.calls)}"

    def wait_event(self, event):
        self.calls.append(f"{self.name} waits for {event}")


class Module:
    """What PyTorch has for a device, as far as it is used."""

    def __init__(self):
        self.calls = []
        self.current = Stream(self.calls, "the default stream")

    def Stream(self, device):
        return Stream(self.calls, "the copying stream")

    @contextlib.contextmanager
    def device(self, device):
        yield

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        yield
        self.current = before

    def current_stream(self, device):
        return self.current


@pytest.fixture
def module(monkeypatch):
    """The CPU in the clothes of a device that copies."""
    module, to = Module(), torch.Tensor.to

    def pin(tensor):
        module.calls.append(f"pin on {module.current.name}")
        return tensor.clone()

    def copy(tensor, device, non_blocking=False):
        assert non_blocking
        module.calls.append(f"copy on {module.current.name}")
        return to(tensor, device).clone()

    def record(tensor, stream):
        module.calls.append(f"memory used on {stream.name}")

    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", copy)
    monkeypatch.setattr(torch.Tensor, "record_stream", record)
    return module


def test_the_order_of_calls(module):
    placed = Transfer(CPU).start({"image": np.ones((2, 3), np.float32), "label": np.arange(2), "bad": []})
    copying, default = "the copying stream", "the default stream"
    assert module.calls == [*[f"pin on {copying}"] * 2, *[f"copy on {copying}"] * 2, f"record on {copying}"]
    assert module.current.name == default
    del module.calls[:]
    tensors = on_device(placed, CPU)
    assert module.calls == [f"{default} waits for event 5", *[f"memory used on {default}"] * 2]
    assert tensors["label"].tolist() == [0, 1]
    assert placed.keys() == {"image", "label", "bad"}


def test_the_copy_is_of_the_batch_and_holds_its_pinned_memory(module):
    batch = {"image": np.ones(2, np.float32)}
    placed = Transfer(CPU).start(batch)
    batch["image"][:] = 5
    assert placed.flight.tensors["image"].tolist() == placed.flight.pinned[0].tolist() == [1, 1]


def test_nothing_is_copied_on_the_cpu():
    assert placing(CPU) is None
    batches = [{"image": np.full(2, i, np.float32), "mask": np.ones(2, np.float32)} for i in range(3)]
    for number, (batch, tensors) in enumerate(one_ahead(batches, CPU)):
        assert batch is batches[number]
        assert not isinstance(batch, PlacedBatch)
        assert tensors["image"].data_ptr() == batch["image"].ctypes.data
    assert number == 2
    assert list(one_ahead([], CPU)) == []
