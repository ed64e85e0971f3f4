"""One optimizer step of both players: the only module that weighs and sums a tokenizer's terms.

`TokenizerStep` is called as `(state, images) -> (state, metrics, ids)` and runs one jitted program with donated state.
LFQ updates the generator first and the discriminator on the same reconstruction; IBQ and VQ update the discriminator
first and the generator against the updated one. With `statistics_scope: global` the program is plain `jit` and every
mean is over the global batch; with `per_device` it runs inside `shard_map`, every mean is over one device's images, and
the gradients are averaged, as in data parallelism without synchronised statistics.

Shape legend: A micro-batches, B batch, S pixels of images (H W) or clips (T H W), s tokens, D code dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from voken_common.config.schema.quantizer import quantizer_loss
from voken_common.config.schema.tokenizer import Config
from voken_jax.models.functional import Network, Weights, buffers_of
from voken_jax.optimization.codebook_usage import MICRO_BATCHES
from voken_jax.optimization.finite import Metrics, keep_if_finite
from voken_jax.parallel.sharding import BATCH, batch_sharding, replicated
from voken_jax.quantizers.configured import Quantized, quantize
from voken_jax.tokenizer.losses import (
    LecamAverages,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    lecam_regularizer,
    reconstruction_loss,
    update_lecam,
)
from voken_jax.tokenizer.state import Players, TrainState

Images = Float[Array, "B *S 3"]
Ids = Int[Array, "A B *s"]


class Perceptual(NamedTuple):
    """LPIPS and its frozen weights, or their shapes for a program that is only compiled."""

    network: Network
    weights: dict[str, Any]


class Forward(NamedTuple):
    """Inputs of the generator's losses."""

    reconstruction: Images
    features: Float[Array, "B *S C"]
    quantizer_loss: Float[Array, ""]


class Carry(NamedTuple):
    """Values carried from one pass through the discriminator to the next."""

    buffers: Weights
    lecam: LecamAverages


class Stepped(NamedTuple):
    """Result of one step.

    Attributes:
        state: after the step; as before, with its failure bits set, where a metric was not finite.
        metrics: by name.
        ids: of the codes that the images became, each on the device of its image.
    """

    state: TrainState
    metrics: Metrics
    ids: Ids


class TokenizerStep:
    """The compiled training step of one configuration on one mesh.

    Args:
        config: the run.
        players: both networks.
        optimizer: used for either player with a state of its own.
        mesh: axes (data, fsdp, model).
        shardings: of the training state, as a pytree of NamedSharding.
        perceptual: LPIPS, or None to train without.
    """

    def __init__(
        self,
        config: Config,
        players: Players,
        optimizer: optax.GradientTransformation,
        mesh: Mesh,
        shardings: TrainState,
        perceptual: Perceptual | None,
    ):
        self.config, self.players, self.optimizer, self.mesh = config, players, optimizer, mesh
        self._perceptual = perceptual
        self._axis = "data" if config.statistics_scope == "per_device" else None
        body = self._update
        if self._axis:
            specs = jax.tree.map(lambda s: s.spec, shardings)
            parts: Any = (specs, P(), MICRO_BATCHES)
            body = jax.shard_map(
                body, mesh=mesh, in_specs=(specs, BATCH, P()), out_specs=Stepped(*parts), check_vma=False
            )
        results: Any = (shardings, replicated(mesh), NamedSharding(mesh, MICRO_BATCHES))
        self.program = jax.jit(
            body,
            donate_argnums=0,
            in_shardings=(shardings, batch_sharding(mesh), None),
            out_shardings=Stepped(*results),
        )
        whole = replicated(mesh)
        self._frozen = {} if perceptual is None else jax.tree.map(lambda w: _placed(w, whole), perceptual.weights)

    def __call__(self, state: TrainState, images: Images) -> Stepped:
        """Make one step on images in [-1, 1]; the state passed in is consumed. Metrics stay on the device."""
        return self.program(state, images, self._frozen)

    def lower(self, state: TrainState, images: Any) -> jax.stages.Lowered:
        """The program for these shapes (ShapeDtypeStructs will do), for inspection without running."""
        return self.trace(state, images).lower()

    def trace(self, state: TrainState, images: Any) -> jax.stages.Traced:
        """Trace the program, one stage before `lower`: its operations are still JAX's."""
        frozen = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), self._frozen)
        return self.program.trace(state, images, frozen)

    def _update(self, state: TrainState, images: Images, frozen: Weights) -> Stepped:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        if self._axis:
            key = jax.random.fold_in(key, jax.lax.axis_index(self._axis))
        task = _Task(self, state, frozen, key)
        lecam = LecamAverages(state.lecam.real[0], state.lecam.fake[0])
        carry, micro = Carry(state.buffers, lecam), self._micro_batches(images)
        if self.config.generator_first:
            new, carry, metrics, ids = self._generator_first(task, carry, micro)
        else:
            new, carry, metrics, ids = self._discriminator_first(task, carry, micro)
        new = new.replace(
            step=state.step + 1,
            buffers=self._mean(carry.buffers),
            lecam=jax.tree.map(lambda average: average[None], carry.lecam),
            generator_ema=self._average(state.generator_ema, new.generator),
            discriminator_ema=self._average(state.discriminator_ema, new.discriminator),
        )
        return Stepped(keep_if_finite(state, new, metrics), metrics, ids)

    def _generator_first(self, task: _Task, carry: Carry, micro: Images) -> tuple[TrainState, Carry, Metrics, Ids]:
        def passes(carry: Carry, images: Images) -> tuple[Carry, Any, Array]:
            forward, pull, (logs, ids) = task.forward(images)
            carry, g_grads, g_logs = task.generator_pass(task.state.discriminator, carry, images, forward, pull)
            carry, d_grads, d_logs = task.discriminator_pass(carry, images, forward.reconstruction)
            return carry, ((g_grads, d_grads), {**logs, **g_logs, **d_logs}), ids

        carry, ((g_grads, d_grads), metrics), ids = self._accumulate(passes, carry, micro)
        state = self._apply(task.state, "generator", g_grads, metrics)
        return self._apply(state, "discriminator", d_grads, metrics), carry, metrics, ids

    def _discriminator_first(self, task: _Task, carry: Carry, micro: Images) -> tuple[TrainState, Carry, Metrics, Ids]:
        once = task.forward(micro[0]) if micro.shape[0] == 1 else None

        def first(carry: Carry, images: Images) -> tuple[Carry, Any, None]:
            reconstruction = (once or task.forward(images))[0].reconstruction
            carry, grads, logs = task.discriminator_pass(carry, images, reconstruction)
            return carry, (grads, logs), None

        carry, (grads, metrics), _ = self._accumulate(first, carry, micro)
        state = self._apply(task.state, "discriminator", grads, metrics)

        def second(carry: Carry, images: Images) -> tuple[Carry, Any, Array]:
            forward, pull, (logs, ids) = once or task.forward(images)
            carry, grads, g_logs = task.generator_pass(state.discriminator, carry, images, forward, pull)
            return carry, (grads, {**logs, **g_logs}), ids

        carry, (grads, more), ids = self._accumulate(second, carry, micro)
        metrics |= more
        return self._apply(state, "generator", grads, metrics), carry, metrics, ids

    def _micro_batches(self, images: Images) -> Float[Array, "A b *S 3"]:
        """Every micro-batch takes its share from each device's images, so that none moves."""
        parts = self.config.optimizer.gradient_accumulation
        return images.reshape(images.shape[0] // parts, parts, *images.shape[1:]).swapaxes(0, 1)

    def _accumulate(self, function: Callable[..., Any], carry: Carry, micro: Images) -> tuple[Carry, Any, Any]:
        """Run `function` over micro-batches: means of gradients and logs, over devices too; ids (or None) stacked."""
        if micro.shape[0] == 1:
            carry, result, ids = function(carry, micro[0])
            return carry, self._mean(result), None if ids is None else ids[None]

        def body(scanned: tuple[Carry, Any], images: Images) -> tuple[tuple[Carry, Any], Any]:
            carry, total = scanned
            carry, result, ids = function(carry, images)
            return (carry, jax.tree.map(jnp.add, total, result)), ids

        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(function, carry, micro[0])[1])
        (carry, total), ids = jax.lax.scan(body, (carry, zeros), micro)
        return carry, self._mean(jax.tree.map(lambda x: x / micro.shape[0], total)), ids

    def _mean(self, tree: Any) -> Any:
        if not self._axis:
            return tree
        mean = jax.lax.pmean(tree, self._axis)
        return jax.tree.map(lambda new, old: new.astype(old.dtype), mean, tree)

    def _apply(self, state: TrainState, player: str, grads: Weights, metrics: Metrics) -> TrainState:
        metrics[f"{player}_grad_norm"] = optax.tree.norm(grads)
        weights, moments = getattr(state, player), getattr(state, f"{player}_optimizer")
        updates, moments = self.optimizer.update(grads, moments, weights)
        return state.replace(**{player: optax.apply_updates(weights, updates), f"{player}_optimizer": moments})

    def _average(self, ema: Weights, weights: Weights) -> Weights:
        decay = self.config.optimizer.ema_decay
        return jax.tree.map(lambda e, w: e - (1.0 - decay) * (e - w), ema, weights)


class _Task:
    """One traced step: what its passes share."""

    def __init__(self, step: TokenizerStep, state: TrainState, frozen: Weights, key: Array):
        self.config, self.players, self.mesh = step.config, step.players, step.mesh
        self.perceptual, self.frozen = step._perceptual, frozen
        self.state, self.key = state, key
        adversarial = self.config.adversarial
        self.factor = jnp.where(state.step >= adversarial.start_step, adversarial.discriminator_factor, 0.0)

    def forward(self, images: Images) -> tuple[Forward, Callable[[Forward], Weights], tuple[Metrics, Array]]:
        """Reconstruction and quantizer loss with their pull-back to the generator's parameters, and logs and ids."""

        def run(generator: Weights) -> tuple[Forward, tuple[Metrics, Array]]:
            model = self.players.autoencoder.bind(generator)
            latents = model.encode(images, self.key)
            quantized = quantize(self.config.quantizer, latents, model.codebook, mesh=self.mesh)
            loss, logs = self.quantizer_loss(quantized)
            features = model.features(quantized.codes, self.key)
            reconstruction = model.decoder.conv_out(features)
            wide = reconstruction.astype(jnp.promote_types(reconstruction.dtype, jnp.float32))
            return Forward(wide, features, loss), (logs, quantized.indices)

        forward, pull, aside = jax.vjp(run, self.state.generator, has_aux=True)
        return forward, lambda cotangent: pull(cotangent)[0], aside

    def quantizer_loss(self, quantized: Quantized) -> tuple[Float[Array, ""], Metrics]:
        """Weight and sum the quantizer's terms."""
        step = self.state.step.astype(next(iter(quantized.terms.values())).dtype)
        return quantizer_loss(self.config.quantizer, quantized.terms, step)

    def nll(self, reconstruction: Images, images: Images) -> tuple[Float[Array, ""], Metrics]:
        """Absolute difference plus the weighted perceptual distance."""
        absolute = reconstruction_loss(images, reconstruction)
        distance = jnp.zeros_like(absolute)
        if self.perceptual is not None:
            distance = self.perceptual.network.bind(self.frozen)(images, reconstruction).mean()
        nll = absolute + self.config.perceptual.weight * distance
        return nll, {"nll_loss": nll, "reconstruction_loss": absolute, "perceptual_loss": distance}

    def judge(self, discriminator: Weights, buffers: Weights, images: Images) -> tuple[Array, Weights]:
        """Logits of one pass in training mode, and the statistics it leaves."""
        model = self.players.discriminator.bind(discriminator, buffers)
        logits = model(images, train=True)
        return logits, buffers_of(model)

    def generator_pass(
        self, discriminator: Weights, carry: Carry, images: Images, forward: Forward, pull: Callable[[Forward], Weights]
    ) -> tuple[Carry, Weights, Metrics]:
        """Gradient of the generator's whole loss, one backward pass each through LPIPS, discriminator and decoder."""

        def adversarial(reconstruction: Images) -> tuple[Float[Array, ""], Weights]:
            logits, buffers = self.judge(discriminator, carry.buffers, reconstruction)
            return generator_loss(logits), buffers

        reconstruction = forward.reconstruction
        (nll, logs), nll_slope = jax.value_and_grad(self.nll, has_aux=True)(reconstruction, images)
        (raw, buffers), slope = jax.value_and_grad(adversarial, has_aux=True)(reconstruction)
        weight = self.generator_weight(forward, nll_slope, slope)
        cotangent = Forward(
            reconstruction=nll_slope + weight * self.factor * slope,
            features=jnp.zeros_like(forward.features),
            quantizer_loss=jnp.ones_like(forward.quantizer_loss),
        )
        weighted = weight * self.factor * raw
        logs |= {
            "total_loss": nll + weighted + forward.quantizer_loss,
            "generator_weight": weight,
            "generator_loss": weighted,
            "generator_raw_loss": raw,
            "discriminator_factor": self.factor,
        }
        return carry._replace(buffers=buffers), pull(cotangent), logs

    def generator_weight(self, forward: Forward, nll_slope: Images, slope: Images) -> Float[Array, ""]:
        """The configured weight, or the adaptive one."""
        config = self.config.adversarial
        if config.generator_weight is not None:
            return jnp.asarray(config.generator_weight, forward.quantizer_loss.dtype)
        generator, name = self.state.generator, f"{self.config.last_layer}.kernel"

        def last(kernel: Array) -> Images:
            model = self.players.autoencoder.bind({**generator, name: kernel})
            images = model.decoder.conv_out(forward.features)
            return images.astype(forward.reconstruction.dtype)

        _, pull = jax.vjp(last, generator[name])
        return config.adaptive_scale * adaptive_weight(pull(nll_slope)[0], pull(slope)[0])

    def discriminator_pass(
        self, carry: Carry, images: Images, reconstruction: Images
    ) -> tuple[Carry, Weights, Metrics]:
        """Gradient of the discriminator's loss on real images and on (detached) reconstructions."""
        config = self.config.adversarial
        fake_images = jax.lax.stop_gradient(reconstruction)

        def loss(discriminator: Weights) -> tuple[Float[Array, ""], tuple[Carry, Metrics]]:
            real, buffers = self.judge(discriminator, carry.buffers, images)
            fake, buffers = self.judge(discriminator, buffers, fake_images)
            moved = update_lecam(carry.lecam, real, fake, config.lecam_decay)
            if not self.config.lecam_from_start:
                moved = jax.tree.map(lambda new, old: jnp.where(self.factor > 0, new, old), moved, carry.lecam)
            regularizer = lecam_regularizer(moved, real, fake)
            plain = discriminator_loss(real, fake, config.objective)
            total = self.factor * (config.lecam_weight * regularizer + plain)
            logs = {
                "discriminator_loss": total,
                "discriminator_raw_loss": plain,
                "lecam_loss": regularizer,
                "logits_real": real.mean(),
                "logits_fake": fake.mean(),
            }
            return total, (Carry(buffers, moved), logs)

        grads, (carry, logs) = jax.grad(loss, has_aux=True)(self.state.discriminator)
        return carry, grads, logs


def _placed(weight: Any, sharding: NamedSharding) -> Any:
    """A weight on the mesh; a shape (for a dry run) with its sharding."""
    if isinstance(weight, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(weight.shape, weight.dtype, sharding=sharding)
    return jax.device_put(weight, sharding)
