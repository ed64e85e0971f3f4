"""One optimizer step of both players: the only module that weighs and sums a tokenizer's terms.

`TokenizerStep` is called as `(state, images) -> metrics` and changes the state in place, or not at all: a loss or
gradient norm that is not finite raises `NonFiniteError` and leaves the state as it was. LFQ updates the generator first
and the discriminator on the same reconstruction; IBQ and VQ update the discriminator first and the generator against
the updated one. Several processes each bring their share of the batch; see `sharding` for the scope of statistics.

Shape legend: B batch, S pixels of images (H W) or clips (T H W), s tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from voken_common.config.schedules import Schedule
from voken_common.config.schema.quantizer import quantizer_loss
from voken_common.config.schema.tokenizer import Config
from voken_torch.device.kernels import at_least_float32
from voken_torch.device.runtime import Runtime
from voken_torch.models.discriminator import synchronise_batch_norms
from voken_torch.models.lpips import LPIPS
from voken_torch.optimization import optim
from voken_torch.optimization.codebook_usage import SeenCodes
from voken_torch.optimization.finite import Metrics, require_finite
from voken_torch.parallel.sharding import (
    average_in_place,
    check_config,
    data_parallel,
    process_count,
    process_index,
    reduce_mean,
    share_entries,
    without_exchange,
)
from voken_torch.quantizers.configured import Quantized, quantize
from voken_torch.tokenizer.losses import (
    LecamAverages,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    lecam_regularizer,
    reconstruction_loss,
    update_lecam,
)
from voken_torch.tokenizer.state import Kept, Players, Seeded, TrainState

Images = Float[Tensor, "B 3 *S"]
Scalar = Float[Tensor, ""]


class Forward(NamedTuple):
    """Inputs of the generator's losses, with the graph to the parameters."""

    reconstruction: Images
    terms: Metrics
    ids: Int[Tensor, "B *s"]


class _GeneratorPass(nn.Module):
    """Images to reconstruction and quantizer terms: one call, as data parallelism wants it."""

    def __init__(self, config: Config, players: Players, reduce_statistics: Callable[[Tensor], Tensor] | None):
        super().__init__()
        self.autoencoder, self.config, self.reduce_statistics = players.autoencoder, config, reduce_statistics

    def forward(self, images: Images) -> Forward:
        ids: list[Tensor] = []

        def quantizer(latents: Tensor, codebook: Tensor | None) -> Quantized:
            quantized = quantize(self.config.quantizer, latents, codebook, self.reduce_statistics)
            ids.append(quantized.indices)
            return quantized

        reconstruction, terms = self.autoencoder(images, quantizer)
        return Forward(reconstruction, terms, ids[0])


class _DiscriminatorPass(nn.Module):
    """Logits of real and then of fake images, in one call."""

    def __init__(self, players: Players):
        super().__init__()
        self.discriminator = players.discriminator

    def forward(self, real: Images, fake: Images) -> tuple[Tensor, Tensor]:
        return self.discriminator(real), self.discriminator(fake)


class TokenizerStep:
    """One step of a configuration on the networks of one state.

    Args:
        config: the run.
        state: the state whose networks are trained; the step may only be called with it.
        schedule: learning-rate factor by step.
        runtime: the device the state lives on.
        perceptual: LPIPS on the same device, or None to train without.

    Attributes:
        seen_codes: which codes the steps have used since the last look.

    Raises:
        ValueError: the configuration asks for more than data parallelism.
    """

    def __init__(
        self,
        config: Config,
        state: TrainState,
        schedule: Schedule,
        runtime: Runtime | None = None,
        perceptual: LPIPS | None = None,
    ):
        check_config(config)
        self.config, self.schedule, self.perceptual = config, schedule, perceptual
        self.runtime, self.players = runtime or Runtime(), state.players
        self.seen_codes = SeenCodes(config.quantizer.codebook_size, self.runtime.device)
        synchronise = process_count() > 1 and config.statistics_scope == "global"
        self.reduce_statistics = reduce_mean if synchronise else None
        if synchronise:
            synchronise_batch_norms(self.players.discriminator, reduce_mean, process_count())
        self.generator = data_parallel(_GeneratorPass(config, self.players, self.reduce_statistics))
        self.discriminator = data_parallel(_DiscriminatorPass(self.players))

    def __call__(self, state: TrainState, images: Images) -> Metrics:
        """Images in [-1, 1], this process's share of the batch. Metrics stay on the device.

        Raises:
            NonFiniteError: a term was not finite; the state is as before.
            ValueError: images of another shape, or fewer than the micro-batches.
        """
        assert state.players is self.players, "a step is built for the networks of one state"
        for network in self.players:
            network.train()
        generator_first = self.config.generator_first
        kept = Kept(state, whole_discriminator=not generator_first)
        task = _Task(self, state)
        try:
            micro = self._micro_batches(images)
            metrics = task.generator_first(micro) if generator_first else task.discriminator_first(micro)
            require_finite(metrics, state.step)
        except BaseException:
            kept.restore()
            for network in self.players:
                network.zero_grad(set_to_none=True)
            raise
        task.update("generator", metrics)
        if generator_first:
            task.update("discriminator", metrics)
        self._finish(state, task.lecam)
        self.seen_codes.see(task.ids)
        return metrics

    def _micro_batches(self, images: Images) -> list[Images]:
        parts, channels = self.config.optimizer.gradient_accumulation, self.config.model.image_channels
        axes = "T, H, W" if self.config.model.is_video else "H, W"
        if (
            images.ndim != 2 + len(axes.split())
            or images.shape[1] != channels
            or images.shape[0] % parts
            or images.shape[0] == 0
        ):
            raise ValueError(
                f"images have shape {tuple(images.shape)}: expected (B, {channels}, {axes}) with B a multiple of "
                f"optimizer.gradient_accumulation {parts}"
            )
        dtype = getattr(torch, self.config.precision.param_dtype)
        images = images.to(self.runtime.device, dtype)
        return [images[i::parts] for i in range(parts)]

    def _finish(self, state: TrainState, lecam: LecamAverages) -> None:
        decay = self.config.optimizer.ema_decay
        optim.update_averages(state.generator_ema, self.players.autoencoder, decay)
        optim.update_averages(state.discriminator_ema, self.players.discriminator, decay)
        if self.config.statistics_scope == "per_device":
            average_in_place(state.buffers.values())
            state.lecam = LecamAverages(*(share_entries(average) for average in lecam))
        else:
            state.lecam = LecamAverages(*(average[None] for average in lecam))
        state.step += 1


class _Task:
    """One step under way: what its passes share."""

    def __init__(self, step: TokenizerStep, state: TrainState):
        self.step, self.state, self.config = step, state, step.config
        adversarial = self.config.adversarial
        self.factor = adversarial.discriminator_factor if state.step >= adversarial.start_step else 0.0
        own = process_index() if state.lecam.real.shape[0] > 1 else 0
        self.lecam = LecamAverages(state.lecam.real[own], state.lecam.fake[own])
        self.totals: Metrics = {}
        self.ids: list[Tensor] = []

    def generator_first(self, micro: list[Images]) -> Metrics:
        """Gradients of both players on one reconstruction, in `.grad`."""
        for i, images in enumerate(micro):
            last = i == len(micro) - 1
            forward = self.forward(images, i, last)
            self.generator_pass(images, forward, len(micro), last)
            self.discriminator_pass(images, forward.reconstruction.detach(), len(micro), last)
        return self.metrics(len(micro), "generator", "discriminator")

    def discriminator_first(self, micro: list[Images]) -> Metrics:
        """The discriminator's update, then gradients of the generator against it, in `.grad`."""
        once = self.forward(micro[0], 0, True) if len(micro) == 1 else None
        for i, images in enumerate(micro):
            with torch.no_grad():
                reconstruction = (once or self.forward(images, i, True)).reconstruction.detach()
            self.discriminator_pass(images, reconstruction, len(micro), i == len(micro) - 1)
        metrics = self.metrics(len(micro), "discriminator")
        self.update("discriminator", metrics)
        self.totals = {}
        for i, images in enumerate(micro):
            last = i == len(micro) - 1
            self.generator_pass(images, once or self.forward(images, i, last), len(micro), last)
        return metrics | self.metrics(len(micro), "generator")

    def forward(self, images: Images, number: int, exchange: bool) -> Forward:
        """One pass through the autoencoder and the quantizer."""
        generator = self.step.generator if torch.is_grad_enabled() else _unwrapped(self.step.generator)
        with self.autocast(), self.randomness(number), without_exchange(generator, not exchange):
            return generator(images)

    def quantizer_loss(self, terms: Metrics) -> tuple[Scalar, Metrics]:
        """Weight and sum the quantizer's terms, and say what to log of them."""
        return quantizer_loss(self.config.quantizer, terms, self.state.step)

    def nll(self, reconstruction: Images, images: Images) -> tuple[Scalar, Metrics]:
        """Absolute difference plus the weighted perceptual distance."""
        absolute = reconstruction_loss(images, reconstruction)
        distance = torch.zeros_like(absolute)
        if self.step.perceptual is not None:
            with self.autocast():
                distance = self.step.perceptual(images, reconstruction).mean()
        nll = absolute + self.config.perceptual.weight * distance
        return nll, {"nll_loss": nll, "reconstruction_loss": absolute, "perceptual_loss": distance}

    def generator_pass(self, images: Images, forward: Forward, parts: int, last: bool) -> None:
        """Gradient of the generator's whole loss, one backward pass each through LPIPS, discriminator and decoder."""
        self.ids.append(forward.ids)
        reconstruction = forward.reconstruction.detach().requires_grad_()
        nll, logs = self.nll(reconstruction, images)
        (nll_slope,) = torch.autograd.grad(nll, reconstruction)
        with self.autocast():
            raw = generator_loss(self.step.players.discriminator(reconstruction))
        (slope,) = torch.autograd.grad(raw, reconstruction)
        weight = self.generator_weight(forward.reconstruction, nll_slope, slope)
        loss, quantizer_logs = self.quantizer_loss(forward.terms)
        cotangent = (nll_slope + weight * self.factor * slope) / parts
        with without_exchange(self.step.generator, not last):
            torch.autograd.backward([forward.reconstruction, loss], [cotangent, torch.ones_like(loss) / parts])
        weighted = weight * self.factor * raw
        self.log(
            {
                **quantizer_logs,
                **logs,
                "total_loss": nll + weighted + loss,
                "generator_weight": weight,
                "generator_loss": weighted,
                "generator_raw_loss": raw,
                "discriminator_factor": torch.full_like(raw, self.factor),
            }
        )

    def generator_weight(self, reconstruction: Images, nll_slope: Images, slope: Images) -> Scalar:
        """The configured weight, or the adaptive one."""
        config = self.config.adversarial
        if config.generator_weight is not None:
            return nll_slope.new_tensor(config.generator_weight)
        last = self.step.players.autoencoder.get_parameter(f"{self.config.last_layer}.weight")
        gradients = [
            torch.autograd.grad(reconstruction, last, cotangent, retain_graph=True)[0]
            for cotangent in (nll_slope, slope)
        ]
        if self.step.reduce_statistics is not None:
            gradients = [self.step.reduce_statistics(gradient) for gradient in gradients]
        return config.adaptive_scale * adaptive_weight(*gradients)

    def discriminator_pass(self, images: Images, reconstruction: Images, parts: int, last: bool) -> None:
        """Gradient of the discriminator's loss on real images and on reconstructions."""
        config, reduce = self.config.adversarial, self.step.reduce_statistics
        with self.autocast(), without_exchange(self.step.discriminator, not last):
            real, fake = self.step.discriminator(images, reconstruction)
        if self.factor > 0 or self.config.lecam_from_start:
            means = [logits.detach().mean() for logits in (real, fake)]
            real_mean, fake_mean = means if reduce is None else [reduce(mean) for mean in means]
            self.lecam = update_lecam(self.lecam, real_mean, fake_mean, config.lecam_decay)
        regularizer = lecam_regularizer(self.lecam, real, fake)
        plain = discriminator_loss(real, fake, config.objective)
        total = self.factor * (config.lecam_weight * regularizer + plain)
        with without_exchange(self.step.discriminator, not last):
            (total / parts).backward()
        self.log(
            {
                "discriminator_loss": total,
                "discriminator_raw_loss": plain,
                "lecam_loss": regularizer,
                "logits_real": real.mean(),
                "logits_fake": fake.mean(),
            }
        )

    def log(self, values: Metrics) -> None:
        """Add one micro-batch's values."""
        for name, value in values.items():
            value = at_least_float32(value.detach())
            self.totals[name] = self.totals[name] + value if name in self.totals else value

    def metrics(self, parts: int, *players: str) -> Metrics:
        """Means over micro-batches and processes of what was logged, and the norms of these players' gradients."""
        values = torch.stack(list(self.totals.values())) / parts
        metrics = dict(zip(self.totals, reduce_mean(values).unbind(), strict=True))
        for player in players:
            metrics[f"{player}_grad_norm"] = optim.gradient_norm(self.network(player))
        return metrics

    def update(self, player: str, metrics: Metrics) -> None:
        """One optimizer step of a player with the gradients it has."""
        config = self.config.optimizer
        rate = config.learning_rate * float(self.step.schedule(self.state.step))
        optimizer = getattr(self.state, f"{player}_optimizer")
        optim.update(optimizer, rate, metrics[f"{player}_grad_norm"], config.gradient_clip)

    def network(self, player: str) -> nn.Module:
        """The network of a player."""
        return self.step.players.autoencoder if player == "generator" else self.step.players.discriminator

    def autocast(self) -> AbstractContextManager[Any]:
        """The configured compute precision."""
        return self.step.runtime.autocast(self.config.precision.compute_dtype)

    def randomness(self, number: int) -> AbstractContextManager[Any]:
        """Random numbers of one micro-batch, from the state's words; nothing where the network draws none."""
        if not self.step.players.autoencoder.stochastic:
            return nullcontext()
        return Seeded(self.step.runtime, [*self.state.rng.tolist(), self.state.step, process_index(), number])


def _unwrapped(module: nn.Module) -> nn.Module:
    return getattr(module, "module", module)
