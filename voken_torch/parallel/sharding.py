"""Parallelism over processes: the only module that knows their number, their shares and their exchanges.

One process drives one device (`torchrun` starts them; `device.start` joins them), and each brings its share of the
batch. With `statistics_scope: per_device` every mean is over one process's images and the gradients are averaged, as
PyTorch's data parallelism does; with `global` the statistics that are not plain means of losses (batch norm, the
average code of the entropies, LeCAM, the adaptive weight) are taken over all processes through `reduce_mean`, and the
result is that of one large batch.

With `mesh.fsdp` 1 every process holds all weights (DDP). With more, that many processes share them: parameters,
gradients, moments and averages are split along their first axis (FSDP2), and split tensors are DTensors.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from voken_common.config.loading import AnyConfig
from voken_common.config.schema.run import MeshConfig
from voken_common.processes import Processes


def process_count() -> int:
    """Count the processes that train together; 1 if none were joined."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_index() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if process_count() > 1 else 0


class _ReduceMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _mean(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _mean(gradient)


def reduce_mean(x: Tensor) -> Tensor:
    """Mean of a tensor over all processes.

    Differentiable: with gradients averaged over processes afterwards, the result is the gradient of the mean over
    processes of their losses, which is why the gradient passes through the same mean.
    """
    return _ReduceMean.apply(x) if process_count() > 1 else x


def share_entries(value: Tensor) -> Tensor:
    """(P,) of a scalar that differs between P processes, the same on all of them."""
    entries = value.new_zeros(process_count())
    entries[process_index()] = value.detach()
    if process_count() > 1:
        dist.all_reduce(entries)
    return entries


@torch.no_grad()
def average_in_place(tensors: Iterable[Tensor]) -> None:
    """Replace floating-point tensors by their means over all processes, in one exchange."""
    chosen = [tensor for tensor in tensors if tensor.is_floating_point()]
    if process_count() == 1 or not chosen:
        return
    flat = _mean(torch.cat([tensor.flatten() for tensor in chosen]))
    for tensor, part in zip(chosen, flat.split([tensor.numel() for tensor in chosen]), strict=True):
        tensor.copy_(part.view_as(tensor))


def shard(network: nn.Module, units: Iterable[nn.Module], config: MeshConfig, device: torch.device) -> None:
    """Split the parameters of a network over `mesh.fsdp` processes, and move them to the device; nothing where it is 1.

    The optimizer is built afterwards. Over the `mesh.data` groups that each hold all weights, gradients are averaged.

    Args:
        network: its `forward` is what training calls.
        units: modules of it whose weights are whole only while they compute; all others are whole from the start of a
            pass to the end of its backward pass.
        config: the mesh, as `check_config` accepted it.
        device: where this process computes.
    """
    if config.fsdp == 1:
        return
    # Imported late: it takes as long as the rest of torch.distributed, and most runs do not need it.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    shape = (process_count() // config.fsdp, config.fsdp)
    grid = init_device_mesh(device.type, shape, mesh_dim_names=("data", "fsdp"))
    mesh = grid if shape[0] > 1 else grid["fsdp"]
    for unit in units:
        fully_shard(unit, mesh=mesh)
    fully_shard(network, mesh=mesh)


def is_split(value: Tensor) -> bool:
    """True if a tensor is one process's part of a larger one."""
    return hasattr(value, "full_tensor")


def whole(value: Tensor) -> Tensor:
    """The whole of a tensor that may be split; all processes call it."""
    if not is_split(value):
        return value
    split: Any = value
    result: Tensor = split.full_tensor()
    return result


def local(value: Tensor) -> Tensor:
    """Return this process's part of a tensor that may be split; it shares the memory."""
    if not is_split(value):
        return value
    split: Any = value
    part: Tensor = split.to_local()
    return part


def laid_out_like(own: Tensor, value: Tensor) -> Tensor:
    """A copy of a whole tensor on the device, in the precision and split as `own`; all processes call it."""
    value = value.detach().to(own.device, own.dtype, copy=True)
    if not is_split(own):
        return value
    from torch.distributed.tensor import distribute_tensor

    layout: Any = own
    return distribute_tensor(value, layout.device_mesh, layout.placements)


def gathered(value: Any) -> Any:
    """Nested dictionaries with every tensor whole and in host memory, on the first process; all processes call it.

    Tensors that are so already are not copied. The other processes get None in their place.
    """
    if isinstance(value, dict):
        return {key: gathered(item) for key, item in value.items()}
    if not isinstance(value, Tensor):
        return value
    full = whole(value.detach())
    return full.cpu() if process_index() == 0 else None


def data_parallel(module: nn.Module) -> nn.Module:
    """The module itself, or wrapped so that its gradients are averaged over processes while they are computed."""
    if process_count() == 1 or any(is_split(parameter) for parameter in module.parameters()):
        return module
    # Buffers are looked after by the step: a broadcast before a pass would undo the pass before it. The option has
    # another name since torch 2.13.
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    option = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {option: False, "gradient_as_bucket_view": True}
    return DistributedDataParallel(module, **options)


@contextmanager
def without_exchange(module: nn.Module, skip: bool) -> Iterator[None]:
    """Leave gradients local where `skip`: all but the last of several micro-batches."""
    if skip and isinstance(module, DistributedDataParallel):
        with module.no_sync():
            yield
        return
    split: list[Any] = [m for m in module.modules() if hasattr(m, "set_requires_gradient_sync")] if skip else []
    for part in split:
        part.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        for part in split:
            part.set_requires_gradient_sync(True)


def check_config(config: AnyConfig) -> None:
    """Raise ValueError for what this configuration asks of the mesh and PyTorch training does not do."""
    processes, mesh = process_count(), config.mesh
    if mesh.model > 1:
        raise ValueError(
            f"mesh.model is {mesh.model}: in PyTorch weights are split over mesh.fsdp alone, so set it to 1 (or train "
            "in JAX)"
        )
    if getattr(getattr(config, "quantizer", None), "shard_codes", False):
        raise ValueError("quantizer.shard_codes is true: only JAX training splits a codebook; set it to false")
    data = processes // mesh.fsdp if mesh.data == -1 else mesh.data
    if data < 1 or data * mesh.fsdp != processes:
        raise ValueError(
            f"mesh.data {mesh.data} x mesh.fsdp {mesh.fsdp} does not use the {processes} process(es) that were started "
            "exactly; start as many with torchrun --nproc-per-node, or set mesh.data to -1 and mesh.fsdp to a divisor"
        )
    for key, size, parts in (
        ("training.batch_size", config.training.batch_size, processes * config.optimizer.gradient_accumulation),
        ("validation.batch_size", config.validation.batch_size, processes),
    ):
        if size % parts:
            raise ValueError(
                f"{key} {size} is not divisible by {parts} (processes: {processes}"
                + (
                    f", optimizer.gradient_accumulation: {config.optimizer.gradient_accumulation}"
                    if parts != processes
                    else ""
                )
                + f"); the nearest that is: {max(parts, round(size / parts) * parts)}"
            )


def gather_objects(value: Any) -> list[Any]:
    """Gather the objects of the other processes; empty if there is only one. Pickled: small objects of our own only."""
    if process_count() == 1:
        return []
    gathered: list[Any] = [None] * process_count()
    dist.all_gather_object(gathered, value)
    return [other for index, other in enumerate(gathered) if index != process_index()]


def any_process(flag: bool, device: torch.device) -> bool:
    """True if the flag is set on any process; all of them learn it at the same step."""
    if process_count() == 1:
        return flag
    votes = torch.tensor(float(flag), device=device)
    dist.all_reduce(votes)
    return votes.item() > 0


def processes(device: torch.device) -> Processes:
    """Return the processes of this run, as one that computes on `device`."""
    return Processes(process_index(), process_count(), gather_objects, lambda flag: any_process(flag, device))


def size_of(weights: Mapping[str, Tensor]) -> int:
    """Count the numbers in a dictionary of tensors, split ones counted whole."""
    return sum(weight.numel() for weight in weights.values())


def _mean(x: Tensor) -> Tensor:
    total = x.detach().clone()
    dist.all_reduce(total)
    return total / process_count()
