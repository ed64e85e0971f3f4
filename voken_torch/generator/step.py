"""One optimizer step of a generator: cross entropy of every (sub-)token, AdamW with scheduled rate and decay.

`GeneratorStep` is called as `(state, batch) -> metrics` and changes the state in place, or not at all: a loss or
gradient norm that is not finite raises `NonFiniteError`.

Shape legend: B batch, T tokens, S sub-tokens per position, V codes of one sub-token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim import Optimizer

from voken_common.checkpoints import weight_names as names
from voken_common.config.schedules import Schedule, scheduled_weight_decay
from voken_common.config.schema.generator import GeneratorConfig
from voken_common.errors import NonFiniteError
from voken_torch.device.runtime import Runtime
from voken_torch.models.generator import Adaptive, Factorized, build_generator
from voken_torch.models.transformer import Block
from voken_torch.optimization import optim
from voken_torch.optimization.finite import Metrics, require_finite
from voken_torch.parallel.sharding import (
    data_parallel,
    laid_out_like,
    process_index,
    reduce_mean,
    shard,
    whole,
    without_exchange,
)
from voken_torch.tokenizer.state import Seeded

Batch = dict[str, Tensor]
"""`tokens` (B, T, S) and `labels` (B,), both integers."""


@dataclasses.dataclass
class GeneratorState:
    """Everything that changes between two steps.

    Attributes:
        step: optimizer steps taken.
        rng: two words of 32 bits from which every step's random numbers follow.
        network: the generator with its parameters.
        optimizer: AdamW with its moments; a second group holds the tensors that are spared from decay.
        generator_ema: exponential averages of the parameters; empty where none are kept.
    """

    step: int
    rng: Int[Tensor, "2"]
    network: Factorized | Adaptive
    optimizer: Optimizer
    generator_ema: dict[str, Tensor]

    @property
    def generator(self) -> dict[str, Tensor]:
        """Parameters by name."""
        return {name: parameter.detach() for name, parameter in self.network.named_parameters()}

    def to_dict(self) -> dict[str, Any]:
        """Everything as nested dictionaries of tensors; the tensors are the state's own, not copies."""
        return {
            "step": torch.tensor(self.step),
            "rng": self.rng,
            "generator": self.generator,
            "optimizer": optim.moments(self.optimizer, self.network),
            "generator_ema": dict(self.generator_ema),
        }

    @torch.no_grad()
    def load_dict(self, values: dict[str, Any]) -> None:
        """Copy what `to_dict` gave into this state, onto its device and precision.

        Averages that the checkpoint lacks start as its weights; those that the run does not keep are left out.

        Raises:
            NameMismatch: fields, names or shapes differ; nothing has been changed then.
        """
        own = self.to_dict()
        names.require_same_names(values, own, "training state")
        averages = (values["generator_ema"] or values["generator"]) if self.generator_ema else {}
        groups = {"generator": values["generator"], "generator_ema": averages}
        for group, new in groups.items():
            names.require_same_shapes(new, own[group], f"training state, {group}")
        optim.load_moments(self.optimizer, self.network, values["optimizer"])
        for group, new in groups.items():
            for name, tensor in own[group].items():
                tensor.copy_(laid_out_like(tensor, new[name]))
        self.step = int(values["step"])
        self.rng = values["rng"].detach().to("cpu", torch.int64, copy=True)


def create_generator_state(config: GeneratorConfig, runtime: Runtime | None = None) -> GeneratorState:
    """A fresh state on the runtime's device, its initial values drawn on the CPU from the configuration's seed."""
    runtime = runtime or Runtime()
    precision, settings = config.precision, config.optimizer
    runtime.check_precision(precision.param_dtype, precision.compute_dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = build_generator(config.model, precision.remat, runtime.kernels())
    network.to(dtype=getattr(torch, precision.param_dtype))
    shard(network, [block for block in network.modules() if isinstance(block, Block)], config.mesh, runtime.device)
    network.to(device=runtime.device)
    spared = [p for p in network.parameters() if p.ndim < 2 and not settings.decay_all]
    decayed = [p for p in network.parameters() if p.ndim >= 2 or settings.decay_all]
    groups = [{"params": decayed, "decays": True}, *([{"params": spared, "decays": False}] if spared else [])]
    optimizer = runtime.adamw(split=config.mesh.fsdp > 1)(
        groups, lr=settings.learning_rate, betas=settings.betas, eps=settings.epsilon, weight_decay=0.0
    )
    optim.allocate_moments(optimizer)
    copies = {name: p.detach().clone() for name, p in network.named_parameters()}
    return GeneratorState(
        step=0,
        rng=torch.tensor([config.seed // 2**32 % 2**32, config.seed % 2**32]),
        network=network,
        optimizer=optimizer,
        generator_ema={} if settings.ema_decay is None else copies,
    )


def evaluation_generator(
    config: GeneratorConfig, state: GeneratorState, runtime: Runtime | None = None
) -> Factorized | Adaptive:
    """The generator with the averages, or where none are kept the parameters, as its weights, for evaluation.

    It shares their memory; where they are split it is a copy, and all processes call this.
    """
    with torch.device("meta"):
        network = build_generator(config.model, kernels=(runtime or Runtime()).kernels())
    weights = {name: whole(value) for name, value in (state.generator_ema or state.generator).items()}
    network.load_state_dict(weights, strict=True, assign=True)
    return network.requires_grad_(False).eval()


def token_losses(
    logits: Iterable[Float[Tensor, "B T V"]], tokens: Int[Tensor, "B T S"]
) -> tuple[Float[Tensor, ""], Metrics]:
    """Sum over sub-tokens of the mean cross entropy in nats, and loss and accuracy of each."""
    parts = list(logits)
    total = parts[0].new_zeros(())
    metrics: Metrics = {}
    for number, part in enumerate(parts):
        target = tokens[..., number].long()
        loss = F.cross_entropy(part.flatten(0, 1), target.flatten())
        suffix = f"_{number}" if len(parts) > 1 else ""
        metrics[f"loss{suffix}"] = loss.detach()
        metrics[f"accuracy{suffix}"] = (part.argmax(dim=-1) == target).to(part.dtype).mean()
        total = total + loss
    return total, {"loss": total.detach(), **metrics}


class _Pass(nn.Module):
    """Tokens to loss and metrics: one call, as data parallelism wants it."""

    def __init__(self, network: Factorized | Adaptive):
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor, labels: Tensor) -> tuple[Tensor, Metrics]:
        return token_losses(self.network(tokens, labels), tokens)


class GeneratorStep:
    """One step of a configuration on the network of one state.

    Args:
        config: the run.
        state: the state whose network is trained; the step may only be called with it.
        schedule: learning-rate factor by step.
        total_steps: length of the run, over which the weight decay moves.
        runtime: the device the state lives on.
    """

    def __init__(
        self,
        config: GeneratorConfig,
        state: GeneratorState,
        schedule: Schedule,
        total_steps: int,
        runtime: Runtime | None = None,
    ):
        self.config, self.schedule, self.total_steps = config, schedule, total_steps
        self.runtime, self.network = runtime or Runtime(), state.network
        self.pass_ = data_parallel(_Pass(state.network))

    def __call__(self, state: GeneratorState, batch: Batch) -> Metrics:
        """`batch` is this process's share. Metrics stay on the device.

        Raises:
            NonFiniteError: the loss or the gradient norm was not finite; the state is as before.
        """
        assert state.network is self.network, "a step is built for the network of one state"
        self.network.train()
        metrics = self._gradients(state, batch)
        metrics["grad_norm"] = optim.gradient_norm(self.network)
        try:
            require_finite(metrics, state.step)
        except NonFiniteError:
            self.network.zero_grad(set_to_none=True)
            raise
        self._update(state, metrics["grad_norm"])
        return metrics

    def _gradients(self, state: GeneratorState, batch: Batch) -> Metrics:
        parts = self.config.optimizer.gradient_accumulation
        batch = {name: value.to(self.runtime.device) for name, value in batch.items()}
        totals: Metrics = {}
        for number in range(parts):
            micro = {name: value[number::parts] for name, value in batch.items()}
            seeded = Seeded(self.runtime, [*state.rng.tolist(), state.step, process_index(), number])
            autocast = self.runtime.autocast(self.config.precision.compute_dtype)
            with seeded, without_exchange(self.pass_, number < parts - 1):
                with autocast:
                    loss, metrics = self.pass_(micro["tokens"], micro["labels"])
                (loss / parts).backward()
            totals = {name: value + totals.get(name, 0.0) for name, value in metrics.items()}
        values = reduce_mean(torch.stack(list(totals.values())) / parts)
        return dict(zip(totals, values.unbind(), strict=True))

    def _update(self, state: GeneratorState, norm: Float[Tensor, ""]) -> None:
        settings = self.config.optimizer
        rate = settings.learning_rate * float(self.schedule(state.step))
        decay = float(scheduled_weight_decay(settings, state.step, self.total_steps))
        groups: list[dict[str, Any]] = state.optimizer.param_groups
        for group in groups:
            group["weight_decay"] = decay if group["decays"] else 0.0
        optim.update(state.optimizer, rate, norm, settings.gradient_clip)
        if settings.ema_decay is not None:
            optim.update_averages(state.generator_ema, self.network, settings.ema_decay)
        state.step += 1
