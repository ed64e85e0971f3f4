"""The contents of a checkpoint, apart from its format; what they must agree with, and what each format can hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from voken_common.checkpoints import weight_names as names
from voken_common.checkpoints.steps import Meta, Progress, Weights
from voken_common.config.loading import AnyConfig
from voken_common.errors import CheckpointError

Arrays = dict[str, np.ndarray]
"""Torch name -> array in torch layout."""
Kind = Literal["tokenizer", "generator"]
Format = Literal["orbax", "torch", "safetensors", "lightning"]
FORMATS: dict[Format, str] = {
    "orbax": "JAX checkpoint (Orbax)",
    "torch": "PyTorch checkpoint of voken",
    "safetensors": "safetensors file",
    "lightning": "Lightning checkpoint",
}

_SHOWN = 8
_TITLES: dict[Weights, str] = {"raw": "raw weights", "ema": "averaged weights (EMA)"}


@dataclasses.dataclass(frozen=True)
class Shape:
    """The shape of a weight, in torch layout."""

    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Torch names and shapes of the networks of a configuration.

    Attributes:
        generator: the autoencoder with its quantizer, or the transformer.
        discriminator: what is trained of it; empty where there is none.
        buffers: what is not: running statistics and constants.
    """

    generator: dict[str, Shape]
    discriminator: dict[str, Shape] = dataclasses.field(default_factory=dict)
    buffers: dict[str, Shape] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Moments:
    """Adam's state: updates taken, and the first and second moments by parameter."""

    count: int
    mu: Arrays
    nu: Arrays


@dataclasses.dataclass
class Training:
    """State that a run needs besides weights to continue.

    Attributes:
        rng: two words of 32 bits.
        generator_optimizer: Adam's state.
        discriminator_optimizer: of a tokenizer's run.
        lecam: of a tokenizer's run: averages of the logits, `real` and `fake`, one entry per statistics scope.
    """

    rng: np.ndarray
    generator_optimizer: Moments
    discriminator_optimizer: Moments | None = None
    lecam: Arrays = dataclasses.field(default_factory=dict)

    def optimizers(self) -> dict[str, Moments]:
        """Adam's states by player."""
        both = {"generator": self.generator_optimizer, "discriminator": self.discriminator_optimizer}
        return {player: moments for player, moments in both.items() if moments is not None}


@dataclasses.dataclass
class Contents:
    """A checkpoint in memory; arrays may be views of a mapped file.

    Attributes:
        origin: where it was read, for messages.
        format: how it was written there.
        kind: of model.
        config: the run's configuration, None where the file does not carry one.
        step, metrics: as in `Meta`.
        weights: the sets of generator weights it holds.
        discriminator: parameters and buffers together, as in its state dict.
        discriminator_ema: averages of its parameters.
        training: the rest of a training state; of a tokenizer it comes with a discriminator and its averages.
        first_stage: the tokenizer that goes with a generator.
        data: position in the data.
        progress: as in `Meta`; goes with the training state.
        unnamed_averages: averages of a Lightning file under names without dots, until the network is known.
        dropped: what is left behind, and why.
    """

    origin: str
    format: Format
    config: AnyConfig | None = None
    step: int = 0
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    weights: dict[Weights, Arrays] = dataclasses.field(default_factory=dict)
    discriminator: Arrays | None = None
    discriminator_ema: Arrays | None = None
    training: Training | None = None
    data: dict[str, Any] | None = None
    progress: Progress = dataclasses.field(default_factory=Progress)
    unnamed_averages: Arrays = dataclasses.field(default_factory=dict)
    dropped: list[str] = dataclasses.field(default_factory=list)
    kind: Kind = "tokenizer"
    first_stage: Contents | None = None

    @property
    def meta(self) -> Meta:
        """Return the description of a checkpoint with these contents."""
        assert self.config is not None, "the configuration is found before anything is written"
        return Meta(self.config, self.step, self.metrics, self.progress)

    def release(self) -> None:
        """Let go of all arrays."""
        self.weights, self.unnamed_averages = {}, {}
        self.discriminator = self.discriminator_ema = self.training = self.first_stage = None

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """(description, array) of everything that is in it."""
        for kind, arrays in self.weights.items():
            yield from ((f"{name} of the {_TITLES[kind]}", array) for name, array in arrays.items())
        for title, group in (("discriminator", self.discriminator), ("discriminator's EMA", self.discriminator_ema)):
            yield from ((f"{name} of the {title}", array) for name, array in (group or {}).items())
        if self.training is not None:
            yield from ((f"LeCAM average {side}", array) for side, array in self.training.lecam.items())
            for player, moments in self.training.optimizers().items():
                for title, group in (("first", moments.mu), ("second", moments.nu)):
                    of = f"{title} moments of the {player}'s optimizer"
                    yield from ((f"{name} of the {of}", array) for name, array in group.items())

    def kept(self) -> list[str]:
        """One line per part, for people."""
        lines = [f"{_TITLES[kind]}: {_describe(arrays)}" for kind, arrays in self.weights.items()]
        if self.discriminator is not None:
            averages = "" if self.discriminator_ema is None else " and its averages"
            lines.append(f"discriminator{averages}: {_describe(self.discriminator)}")
        if self.training is not None:
            both = self.training.discriminator_optimizer is not None
            parts = "both optimizers, LeCAM averages" if both else "optimizer"
            lines.append(f"training state: {parts}, random numbers")
        if self.data is not None:
            lines.append("position in the data")
        return lines


def narrow(contents: Contents, target: Format, weights: Weights | None, who: str | None = None) -> None:
    """Drop, in place, the parts that are not asked for or that the target cannot hold; `dropped` says why.

    Args:
        contents: what the source has.
        target: the format to write.
        weights: only this set, for inference; None: everything there is.
        who: wants only that; the command's option by default.

    Raises:
        CheckpointError: the set that is asked for is not there.
    """
    if weights is not None:
        if weights not in contents.weights:
            there = " and ".join(_TITLES[kind] for kind in contents.weights) or "no weights"
            raise CheckpointError(f"{contents.origin} holds {there}, not the {_TITLES[weights]} asked for")
        who = who or f"--weights {weights}"
        _keep_set(contents, weights, f"{who} asks for the other set")
        _drop_training(contents, f"{who} asks for a checkpoint for inference")
        _drop_discriminator(contents, "inference needs none")
    elif target == "safetensors":
        _keep_set(contents, "ema" if "ema" in contents.weights else "raw", "a .safetensors file holds one set")
        _drop_training(contents, "a .safetensors file holds weights only")
        _drop_discriminator(contents, "a .safetensors file holds one network")
    elif target == "lightning":
        _drop_training(contents, "another program's optimizers are not written")
        if contents.kind == "generator":
            reason = "the layout has one set of a generator's weights"
            _keep_set(contents, "ema" if "ema" in contents.weights else "raw", reason)
    elif contents.training is None:
        _drop_discriminator(contents, "no optimizer state comes with it, so no training can go on from it")


def check_networks(contents: Contents, manifest: Manifest, generator_only: bool = False) -> None:
    """Everything must be exactly what the networks of the configuration have.

    Args:
        contents: of a checkpoint.
        manifest: of its configuration.
        generator_only: do not look at the discriminator and the training state.

    Raises:
        NameMismatch: names or shapes are missing, unexpected or different; all are listed.
    """
    where = contents.origin
    for kind, arrays in contents.weights.items():
        names.require_same_shapes(arrays, manifest.generator, f"{where}, {_TITLES[kind]}")
    if generator_only:
        return
    if contents.discriminator is not None:
        expected = manifest.discriminator | manifest.buffers
        names.require_same_shapes(contents.discriminator, expected, f"{where}, discriminator")
    if contents.discriminator_ema is not None:
        names.require_same_shapes(contents.discriminator_ema, manifest.discriminator, f"{where}, discriminator's EMA")
    if contents.training is not None:
        for player, moments in contents.training.optimizers().items():
            expected = getattr(manifest, player)
            for group in (moments.mu, moments.nu):
                names.require_same_shapes(group, expected, f"{where}, {player}'s optimizer")


def check_finite(contents: Contents, allow_nonfinite: bool) -> None:
    """Read every tensor once, with a progress bar where that takes long.

    Raises:
        CheckpointError: some are not finite, and that is not allowed.
    """
    bad = []
    total = sum(array.nbytes for _, array in contents.tensors())
    with tqdm(total=total, unit="B", unit_scale=True, desc="checking", delay=2, leave=False) as bar:
        for what, array in contents.tensors():
            if not np.issubdtype(array.dtype, np.integer) and (count := array.size - np.isfinite(array).sum()):
                bad.append(f"  {what}: {count} of {array.size} values are NaN or infinite")
            bar.update(array.nbytes)
    if bad and not allow_nonfinite:
        more = [f"  ... and {len(bad) - _SHOWN} more"] if len(bad) > _SHOWN else []
        raise CheckpointError(
            "\n".join([f"{contents.origin}: {len(bad)} tensor(s) are not finite", *bad[:_SHOWN], *more])
            + "\nTake an earlier step of that run, or pass --allow-nonfinite to convert it as it is"
        )


def _keep_set(contents: Contents, weights: Weights, reason: str) -> None:
    for other in [kind for kind in contents.weights if kind != weights]:
        contents.dropped.append(f"{_TITLES[other]}: {reason}")
        del contents.weights[other]


def _drop_training(contents: Contents, reason: str) -> None:
    if contents.training is not None:
        contents.dropped.append(f"training state: {reason}")
        contents.training = None
    contents.progress = Progress()
    if contents.data is not None:
        contents.dropped.append("position in the data: no training goes on from there")
        contents.data = None


def _drop_discriminator(contents: Contents, reason: str) -> None:
    if contents.discriminator is not None:
        contents.dropped.append(f"discriminator: {reason}")
    contents.discriminator = contents.discriminator_ema = None


def _describe(arrays: Mapping[str, np.ndarray]) -> str:
    megabytes = sum(array.nbytes for array in arrays.values()) / 1e6
    types = ", ".join(sorted({array.dtype.name for array in arrays.values()}))
    return f"{len(arrays)} tensors, {megabytes:.1f} MB, {types}"
