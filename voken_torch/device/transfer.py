"""Batches on their way to the device: copied while it still works on the step before.

To an NPU or a CUDA device a batch goes through pinned memory, on a stream of its own, from a thread of the input
pipeline. On the CPU nothing is copied: the tensors are the arrays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


class PlacedBatch(dict[str, Any]):
    """A batch on the host, as it came, and the same on its way to the device.

    Attributes:
        flight: the copy that is under way.
    """

    def __init__(self, batch: Mapping[str, Any], flight: Flight):
        super().__init__(batch)
        self.flight = flight


@dataclasses.dataclass(frozen=True)
class Flight:
    """Tensors that are being copied.

    Attributes:
        tensors: where they arrive.
        pinned: where they come from; held until they have arrived.
        arrived: an event of the stream that copies.
        current_stream: gives the stream on which the caller computes.
    """

    tensors: dict[str, Tensor]
    pinned: list[Tensor]
    arrived: Any
    current_stream: Callable[[], Any]

    def land(self) -> dict[str, Tensor]:
        """The tensors, for use on the current stream from now on."""
        stream = self.current_stream()
        stream.wait_event(self.arrived)
        for tensor in self.tensors.values():
            # The allocator knows only the stream that copied, and would give the memory away while this one reads it.
            tensor.record_stream(stream)
        return self.tensors


class Transfer:
    """Copies to one NPU or CUDA device, in the order in which they are started, beside what the device computes.

    Args:
        device: with an index.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._module: Any = torch.get_device_module(device)
        self._stream = self._module.Stream(device)

    def start(self, batch: Mapping[str, Any]) -> PlacedBatch:
        """Begin to copy the arrays of a batch; from any thread."""
        arrays = {name: value for name, value in batch.items() if isinstance(value, np.ndarray)}
        # A thread of its own has a current device of its own.
        with self._module.device(self._device), self._module.stream(self._stream):
            pinned = {name: torch.from_numpy(array).pin_memory() for name, array in arrays.items()}
            tensors = {name: source.to(self._device, non_blocking=True) for name, source in pinned.items()}
            arrived = self._stream.record_event()
        return PlacedBatch(batch, Flight(tensors, list(pinned.values()), arrived, self._current))

    def _current(self) -> Any:
        return self._module.current_stream(self._device)


def placing(device: torch.device) -> Callable[[Mapping[str, Any]], PlacedBatch] | None:
    """Return the transfer that the input pipeline applies to ready batches; None for the CPU."""
    return None if device.type == "cpu" else Transfer(device).start


def on_device(batch: Mapping[str, np.ndarray], device: torch.device) -> dict[str, Tensor]:
    """The tensors of a batch, which is under way already or is copied now."""
    if isinstance(batch, PlacedBatch):
        return batch.flight.land()
    return {name: torch.from_numpy(array).to(device) for name, array in batch.items()}


def one_ahead(
    batches: Iterable[Mapping[str, np.ndarray]], device: torch.device
) -> Iterator[tuple[Mapping[str, np.ndarray], dict[str, Tensor]]]:
    """Each batch and its tensors; where they are copied, the next copy is under way meanwhile."""
    place, waiting = placing(device), None
    for batch in batches:
        if place is None:
            yield batch, on_device(batch, device)
            continue
        batch = place(batch)
        if waiting is not None:
            yield waiting, on_device(waiting, device)
        waiting = batch
    if waiting is not None:
        yield waiting, on_device(waiting, device)
