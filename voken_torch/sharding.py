"""Data parallelism over processes: the only place that knows how many there are and what they exchange.

One process drives one device (`torchrun` starts them; `device.start` joins them). With `statistics_scope: per_device`
every mean is over one process's images and the gradients are averaged, as PyTorch's data parallelism does; with
`global` the statistics that are not plain means of losses (batch norm, the average code of the entropies, LeCAM, the
adaptive weight) are taken over all processes through `reduce_mean`, and the result is that of one large batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from voken_common.schema import Config


def process_count() -> int:
    """How many processes train together; 1 where none were joined."""
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


def data_parallel(module: nn.Module) -> nn.Module:
    """The module itself, or wrapped so that its gradients are averaged over processes while they are computed."""
    if process_count() == 1:
        return module
    # Buffers are looked after by the step: a broadcast before a pass would undo the pass before it. The option has
    # another name since torch 2.13.
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    option = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {option: False, "gradient_as_bucket_view": True}
    return DistributedDataParallel(module, **options)


def without_exchange(module: nn.Module, skip: bool) -> AbstractContextManager[Any]:
    """Leave gradients local where `skip`: all but the last of several micro-batches."""
    if skip and isinstance(module, DistributedDataParallel):
        return module.no_sync()
    return nullcontext()


def check_config(config: Config) -> None:
    """Raise ValueError for what this configuration asks of the mesh and PyTorch training does not do."""
    processes, mesh = process_count(), config.mesh
    if mesh.fsdp > 1 or mesh.model > 1:
        raise ValueError(
            f"mesh.fsdp is {mesh.fsdp} and mesh.model {mesh.model}: in PyTorch tokenizers train with data parallelism "
            "alone, so set both to 1 (or train in JAX)"
        )
    if getattr(config.quantizer, "shard_codes", False):
        raise ValueError("quantizer.shard_codes is true: only JAX training splits a codebook; set it to false")
    if mesh.data not in (-1, processes):
        raise ValueError(
            f"mesh.data is {mesh.data} but {processes} process(es) were started; set it to -1, or start that many with "
            "torchrun --nproc-per-node"
        )
    for key, size, parts in (
        ("training.batch_size", config.training.batch_size, processes * config.optimizer.accumulate),
        ("validation.batch_size", config.validation.batch_size, processes),
    ):
        if size % parts:
            raise ValueError(
                f"{key} {size} is not divisible by {parts} (processes: {processes}"
                + (f", optimizer.accumulate: {config.optimizer.accumulate}" if parts != processes else "")
                + f"); the nearest that is: {max(parts, round(size / parts) * parts)}"
            )


def gather_objects(value: Any) -> list[Any]:
    """What the other processes hold; empty where there is one. Pickled: small objects of our own only."""
    if process_count() == 1:
        return []
    gathered: list[Any] = [None] * process_count()
    dist.all_gather_object(gathered, value)
    return [other for index, other in enumerate(gathered) if index != process_index()]


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on any process: all of them learn it at the same step."""
    if process_count() == 1:
        return flag
    votes = torch.tensor(float(flag), device=device)
    dist.all_reduce(votes)
    return votes.item() > 0


def wait_for_all() -> None:
    """Return when every process has come here."""
    if process_count() > 1:
        dist.barrier()


def _mean(x: Tensor) -> Tensor:
    total = x.detach().clone()
    dist.all_reduce(total)
    return total / process_count()
