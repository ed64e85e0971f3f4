"""The process group `hccl`: copies to the CPU, gloo's collective, and back."""

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import (
    AllgatherOptions,
    AllreduceOptions,
    BarrierOptions,
    BroadcastOptions,
    ProcessGroupGloo,
    _create_work_from_future,
)
from torch.futures import Future


def register():
    dist.Backend.register_backend("hccl", SimulatedHCCL, devices=["npu"])


def _done(result=None):
    future = Future()
    future.set_result(result)
    return _create_work_from_future(future)


def _require_npu(tensors):
    # As the real one, which only sees device memory.
    for tensor in tensors:
        if tensor.device.type != "npu":
            raise RuntimeError(f"no backend for tensors on {tensor.device}: hccl communicates tensors of an NPU")


class _OnCpu:
    """Copies of tensors while a collective works on them, put back at the end."""

    def __init__(self, tensors):
        _require_npu(tensors)
        self.tensors, self.copies = tensors, [tensor.detach().cpu() for tensor in tensors]

    def __enter__(self):
        return self.copies

    @torch.no_grad()
    def __exit__(self, *error):
        for tensor, copy in zip(self.tensors, self.copies, strict=True):
            tensor.copy_(copy)


class SimulatedHCCL(dist.ProcessGroup):
    """The collectives that data parallel training uses."""

    @property
    def _device_types(self):
        # Asked for by collectives of Python objects, which travel as tensors of such a device.
        return [torch.device("npu")]

    def __init__(self, store, rank, size, timeout):
        super().__init__(rank, size)
        self.gloo = ProcessGroupGloo(store, rank, size, timeout)

    def getBackendName(self):
        return "hccl"

    def allreduce(self, tensors, opts=None):
        tensors = [tensors] if isinstance(tensors, torch.Tensor) else tensors
        with _OnCpu(tensors) as copies:
            self.gloo.allreduce(copies, opts or AllreduceOptions()).wait()
        return _done(tensors)

    def broadcast(self, tensors, opts=None):
        tensors = [tensors] if isinstance(tensors, torch.Tensor) else tensors
        with _OnCpu(tensors) as copies:
            self.gloo.broadcast(copies, opts or BroadcastOptions()).wait()
        return _done(tensors)

    def allgather(self, outputs, inputs, opts=None):
        _require_npu(inputs)
        (gathered,) = outputs
        with _OnCpu(gathered) as copies:
            self.gloo.allgather([copies], [x.cpu() for x in inputs], opts or AllgatherOptions()).wait()
        return _done(outputs)

    def barrier(self, opts=None):
        self.gloo.barrier(BarrierOptions()).wait()
        return _done()
