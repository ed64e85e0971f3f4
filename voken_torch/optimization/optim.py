"""Optimizers of the two players, from the configuration, and their moments by parameter name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypedDict

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from voken_common.checkpoints import weight_names as names
from voken_common.config.schema.run import OptimizerConfig
from voken_torch.parallel.sharding import laid_out_like, local, whole


class Moments(TypedDict):
    """Steps taken, and the first and second moments by parameter name."""

    count: Tensor
    mu: dict[str, Tensor]
    nu: dict[str, Tensor]


def build_optimizer(
    config: OptimizerConfig, network: nn.Module, adamw: Callable[..., Optimizer] = torch.optim.AdamW
) -> Optimizer:
    """Adam (decoupled weight decay if any) over all parameters, its moments allocated and zero."""
    parameters = list(network.parameters())
    optimizer = adamw(
        parameters,
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
    )
    allocate_moments(optimizer)
    return optimizer


def allocate_moments(optimizer: Optimizer) -> None:
    """Give an optimizer that has made no step its moments, which are zero."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    _load(optimizer, [(torch.tensor(0.0), torch.zeros_like(p), torch.zeros_like(p)) for p in parameters])


def update(optimizer: Optimizer, learning_rate: float, norm: Float[Tensor, ""], gradient_clip: float | None) -> None:
    """One step at this learning rate with the gradients in `.grad`, their global norm bounded; then no gradients."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
        if gradient_clip is not None:
            scale = (gradient_clip / norm).clamp(max=1.0)
            for parameter in group["params"]:
                local(parameter.grad).mul_(scale.to(parameter.grad.dtype))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def gradient_norm(network: nn.Module) -> Float[Tensor, ""]:
    """Global l2 norm of the gradients in `.grad`."""
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    return whole(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients])))


@torch.no_grad()
def update_averages(averages: Mapping[str, Tensor], network: nn.Module, decay: float) -> None:
    """Move exponential averages towards the parameters, in place: e <- e - (1 - decay) (e - p)."""
    parameters = dict(network.named_parameters())
    move = get_ema_multi_avg_fn(decay)
    move([averages[name] for name in parameters], list(parameters.values()), None)


def moments(optimizer: Optimizer, network: nn.Module) -> Moments:
    """Steps taken and both moments, the latter by parameter name; not copies."""
    states = {name: optimizer.state[p] for name, p in network.named_parameters()}
    first = next(iter(states.values()))
    return {
        "count": torch.tensor(int(first["step"])),
        "mu": {name: state["exp_avg"] for name, state in states.items()},
        "nu": {name: state["exp_avg_sq"] for name, state in states.items()},
    }


def load_moments(optimizer: Optimizer, network: nn.Module, values: Moments) -> None:
    """Copy steps taken and moments into the optimizer.

    Raises:
        NameMismatch: names or shapes are not those of the network's parameters.
    """
    parameters = dict(network.named_parameters())
    names.require_same_shapes(values["mu"], parameters, "optimizer moments mu")
    names.require_same_shapes(values["nu"], parameters, "optimizer moments nu")
    name_of = {parameter: name for name, parameter in parameters.items()}
    ordered = [(p, name_of[p]) for group in optimizer.param_groups for p in group["params"]]
    count = torch.tensor(float(values["count"]))
    mu, nu = ([laid_out_like(p, values[moment][name]) for p, name in ordered] for moment in ("mu", "nu"))
    _load(optimizer, [(count.clone(), *both) for both in zip(mu, nu, strict=True)])


def _load(optimizer: Optimizer, states: list[tuple[Tensor, Tensor, Tensor]]) -> None:
    """(steps, mu, nu) of every parameter, in the optimizer's own order."""
    entries = {i: dict(zip(("step", "exp_avg", "exp_avg_sq"), state, strict=True)) for i, state in enumerate(states)}
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
