"""TrainState: everything that changes between two steps of a tokenizer run, and how it is born.

Modules and optimizers hold the tensors, so a step changes them in place; `to_dict` and `load_dict` see them under the
names that checkpoints and the JAX state use.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim import Optimizer

from voken_common.checkpoints import weight_names as names
from voken_common.config.schema.tokenizer import Config
from voken_torch.device.runtime import Runtime
from voken_torch.models.autoencoder import Autoencoder
from voken_torch.models.discriminator import BlurDiscriminator, PatchGAN, build_discriminator
from voken_torch.models.layers import Policy, plain_attention
from voken_torch.optimization import optim
from voken_torch.parallel.sharding import laid_out_like, process_count, shard, whole
from voken_torch.tokenizer.losses import LecamAverages

Weights = dict[str, Tensor]
_WORD = 2**32


class Players(NamedTuple):
    """The two networks of a configuration."""

    autoencoder: Autoencoder
    discriminator: PatchGAN | BlurDiscriminator


@dataclasses.dataclass
class TrainState:
    """Weights of both players and what goes with them.

    Attributes:
        step: optimizer steps taken.
        rng: two words of 32 bits from which every step's random numbers follow.
        players: the networks: parameters of both, and the running statistics of the discriminator.
        generator_optimizer, discriminator_optimizer: Adam with its moments.
        generator_ema, discriminator_ema: exponential averages of the parameters.
        lecam: averages of the logits, one entry per statistics scope: (1,) or (processes,).
    """

    step: int
    rng: Int[Tensor, "2"]
    players: Players
    generator_optimizer: Optimizer
    discriminator_optimizer: Optimizer
    generator_ema: Weights
    discriminator_ema: Weights
    lecam: LecamAverages

    @property
    def generator(self) -> Weights:
        """Parameters of the autoencoder and its quantizer, by name."""
        return _parameters(self.players.autoencoder)

    @property
    def discriminator(self) -> Weights:
        """Parameters of the discriminator, by name."""
        return _parameters(self.players.discriminator)

    @property
    def buffers(self) -> Weights:
        """Running statistics and constants of the discriminator, by name."""
        return dict(self.players.discriminator.named_buffers())

    def to_dict(self) -> dict[str, Any]:
        """Everything as nested dictionaries of tensors; the tensors are the state's own, not copies."""
        autoencoder, discriminator = self.players
        return {
            "step": torch.tensor(self.step),
            "rng": self.rng,
            "generator": self.generator,
            "discriminator": self.discriminator,
            "buffers": self.buffers,
            "generator_optimizer": optim.moments(self.generator_optimizer, autoencoder),
            "discriminator_optimizer": optim.moments(self.discriminator_optimizer, discriminator),
            "generator_ema": dict(self.generator_ema),
            "discriminator_ema": dict(self.discriminator_ema),
            "lecam": self.lecam._asdict(),
        }

    @torch.no_grad()
    def load_dict(self, values: dict[str, Any]) -> None:
        """Copy what `to_dict` gave into this state, onto its device and precision.

        LeCAM averages of another number of processes become their mean.

        Raises:
            NameMismatch: fields, names or shapes differ; nothing has been changed then.
        """
        own = self.to_dict()
        names.require_same_names(values, own, "training state")
        groups = ("generator", "discriminator", "buffers", "generator_ema", "discriminator_ema")
        for group in groups:
            names.require_same_shapes(values[group], own[group], f"training state, {group}")
        for player in ("generator_optimizer", "discriminator_optimizer"):
            names.require_same_names(values[player], own[player], f"training state, {player}")
            for moment in ("mu", "nu"):
                expected = own[player][moment]
                names.require_same_shapes(values[player][moment], expected, f"training state, {player} {moment}")
        for group in groups:
            for name, tensor in own[group].items():
                tensor.copy_(laid_out_like(tensor, values[group][name]))
        optim.load_moments(self.generator_optimizer, self.players.autoencoder, values["generator_optimizer"])
        optim.load_moments(self.discriminator_optimizer, self.players.discriminator, values["discriminator_optimizer"])
        self.step = int(values["step"])
        self.rng = values["rng"].detach().to("cpu", torch.int64, copy=True)
        self.lecam = LecamAverages(
            *(_entries(values["lecam"][side], getattr(self.lecam, side)) for side in ("real", "fake"))
        )


def build_players(config: Config, policy: Policy | None = None) -> Players:
    """Both networks of a configuration, in training mode, on the default device."""
    policy = policy or Policy(config.precision.remat)
    autoencoder = Autoencoder(config.model, config.quantizer, policy)
    return Players(autoencoder, build_discriminator(config.discriminator, config.model.image_channels))


def create_state(config: Config, runtime: Runtime | None = None) -> TrainState:
    """A fresh state on the runtime's device.

    Initial values are drawn on the CPU from the configuration's seed, so they are the same on every device.

    Raises:
        DeviceError: the device cannot compute in the configured precision.
    """
    runtime = runtime or Runtime()
    precision = config.precision
    runtime.check_precision(precision.param_dtype, precision.compute_dtype)
    policy = Policy(precision.remat, runtime.attention() or plain_attention)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        players = build_players(config, policy)
    dtype = getattr(torch, precision.param_dtype)
    # A discriminator is small next to moments and averages of the autoencoder: every process holds it whole.
    shard(players.autoencoder.to(dtype=dtype), (), config.mesh, runtime.device)
    for network in players:
        network.to(device=runtime.device, dtype=dtype)
    entries = process_count() if config.statistics_scope == "per_device" else 1
    zeros = torch.zeros(entries, dtype=dtype, device=runtime.device)
    adamw = runtime.adamw(split=config.mesh.fsdp > 1)
    return TrainState(
        step=0,
        rng=torch.tensor([config.seed // _WORD % _WORD, config.seed % _WORD]),
        players=players,
        generator_optimizer=optim.build_optimizer(config.optimizer, players.autoencoder, adamw),
        discriminator_optimizer=optim.build_optimizer(config.optimizer, players.discriminator, adamw),
        generator_ema=_copies(players.autoencoder),
        discriminator_ema=_copies(players.discriminator),
        lecam=LecamAverages(real=zeros, fake=zeros.clone()),
    )


def averaged_autoencoder(config: Config, state: TrainState, policy: Policy | None = None) -> Autoencoder:
    """The autoencoder with the averages as its weights, for evaluation.

    It shares their memory and follows them; where they are split it is a copy, and all processes call this.
    """
    with torch.device("meta"):
        network = Autoencoder(config.model, config.quantizer, policy)
    averages = {name: whole(value) for name, value in state.generator_ema.items()}
    network.load_state_dict(averages, strict=True, assign=True)
    return network.requires_grad_(False).eval()


class Kept:
    """Copies of what a step changes before it can know that it succeeded: the discriminator's side.

    The generator's own weights change last, so only running statistics need copies, and where the discriminator goes
    first its parameters and moments too.
    """

    def __init__(self, state: TrainState, whole_discriminator: bool):
        tensors, self._moments = list(state.buffers.values()), []
        if whole_discriminator:
            tensors += state.discriminator.values()
            for moments in state.discriminator_optimizer.state.values():
                # Some fused optimizers count their steps in a plain number.
                copies = {key: _copy(value) for key, value in moments.items()}
                self._moments.append((moments, copies))
        self._pairs = [(tensor, _copy(tensor)) for tensor in tensors]

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back."""
        for tensor, copy in self._pairs:
            tensor.copy_(copy)
        for moments, copies in self._moments:
            for key, copy in copies.items():
                # Looked up only now: a fused optimizer replaces its tensors at its first step.
                if isinstance(copy, Tensor):
                    moments[key].copy_(copy)
                else:
                    moments[key] = copy


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


class Seeded:
    """Seed the generators of all devices from some words, and put their states back afterwards."""

    def __init__(self, runtime: Runtime, words: list[int]):
        self._fork = runtime.forked_random_state()
        self._seed = int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))

    def __enter__(self) -> None:
        self._fork.__enter__()
        torch.manual_seed(self._seed)

    def __exit__(self, *error: Any) -> None:
        self._fork.__exit__(*error)


def _parameters(network: nn.Module) -> Weights:
    return {name: parameter.detach() for name, parameter in network.named_parameters()}


def _copies(network: nn.Module) -> Weights:
    return {name: parameter.clone() for name, parameter in _parameters(network).items()}


def _entries(values: Float[Tensor, " P"], own: Float[Tensor, " Q"]) -> Float[Tensor, " Q"]:
    values = values.detach().to(own, copy=True)
    return values if values.shape == own.shape else values.mean().expand(own.shape).clone()
