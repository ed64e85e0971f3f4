"""Sections that every run has: schedule, optimizer, precision, mesh, training, validation, checkpoints, health."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from voken_common.config.schema.base import Section
from voken_common.config.schema.bounds import NonNegativeInt, PositiveInt

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class ScheduleConfig(Section):
    """Learning-rate factor over steps; drops multiply whatever the schedule gives."""

    kind: Literal["constant", "linear", "cos", "linear-warmup", "linear-warmup_cosine-decay"] = "constant"
    """Kind of this section."""
    warmup_steps: NonNegativeInt | None = None
    """Length of the warm-up in steps; or set warmup_epochs."""
    warmup_epochs: NonNegativeFloat | None = None
    """Length of the warm-up in epochs; or set warmup_steps."""
    start_factor: NonNegativeFloat = 0.005
    """Factor on the learning rate at step 0 of the warm-up."""
    end_factor: NonNegativeFloat = 0.1
    """Factor on the learning rate at the end of the run."""
    drop_epochs: tuple[PositiveInt, ...] = ()
    """Epochs after which the learning rate is multiplied by drop_factor."""
    drop_steps: tuple[PositiveInt, ...] = ()
    """Steps from which on the learning rate is multiplied by drop_factor."""
    drop_factor: PositiveFloat = 0.1
    """Factor of each drop."""

    @model_validator(mode="after")
    def _check(self) -> ScheduleConfig:
        if self.warmup_steps is not None and self.warmup_epochs is not None:
            raise ValueError("set warmup_steps or warmup_epochs, not both")
        return self


class OptimizerConfig(Section):
    """Adam for both players."""

    learning_rate: PositiveFloat = 1e-4
    """Learning rate before the factor of the schedule."""
    betas: tuple[Fraction, Fraction] = (0.5, 0.9)
    """Decays of the first and second moment of Adam."""
    epsilon: PositiveFloat = 1e-8
    """Epsilon of Adam."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay (decoupled)."""
    gradient_clip: PositiveFloat | None = None
    """Largest global norm of each player's gradient."""
    gradient_accumulation: PositiveInt = 1
    """Micro-batches per optimizer step; the global batch is split into this many."""
    ema_decay: Fraction = 0.999
    """Decay of the exponential average of the weights, per step."""
    schedule: ScheduleConfig = ScheduleConfig()


class PrecisionConfig(Section):
    """Norms, losses and quantizer logits are in float32 at least, whatever compute is."""

    param_dtype: Literal["float32", "float64"] = "float32"
    """Format of the weights and of the optimizer."""
    compute_dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Format of matrix products and convolutions."""
    remat: bool = False
    """Recompute residual blocks in the backward pass instead of keeping their activations."""


class MeshConfig(Section):
    """Devices along each mesh axis; -1 for `data` means all that are left."""

    data: int = -1
    """Devices over which the batch is split; -1: all that are left."""
    fsdp: PositiveInt = 1
    """Devices over which batch, weights and moments are split."""
    model: PositiveInt = 1
    """Devices over which a sharded codebook, or a generator's layers, are split."""

    @model_validator(mode="after")
    def _check(self) -> MeshConfig:
        if self.data != -1 and self.data < 1:
            raise ValueError(f"data is {self.data}: expected a positive number of devices, or -1 for all that are left")
        return self


class TrainingConfig(Section):
    """Length and pace of the run."""

    batch_size: PositiveInt
    """Global: images per optimizer step over all devices and micro-batches."""
    epochs: PositiveInt | None = None
    """Length of the run in epochs; or set steps."""
    steps: PositiveInt | None = None
    """Length of the run in optimizer steps; or set epochs."""
    log_every: PositiveInt = 100
    """Steps between two logged ones."""

    @model_validator(mode="after")
    def _check(self) -> TrainingConfig:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("set exactly one of epochs and steps")
        return self


class ValidationConfig(Section):
    """Pace and size of the evaluation of the EMA weights."""

    every: PositiveInt = 5000
    """Steps between validations; one always runs at the end."""
    batch_size: PositiveInt = 32
    """Images per batch of validation, over all devices."""
    max_images: PositiveInt | None = None
    """Images to validate on; null: all."""
    pictures: NonNegativeInt = 8
    """Images in the reconstruction grid."""
    metrics: tuple[Literal["rfid", "ssim", "lpips_alex", "lpips_vgg"], ...] = ()
    """Measured beside PSNR, L1 and usage, on the same images (`max_images`); as `voken evaluate` measures them."""
    inception: str = "auto"
    """Weights of FID's Inception: auto (cache, else download) or a file."""
    lpips: str = "auto"
    """Weights of LPIPS: auto or a folder."""


class CheckpointConfig(Section):
    """Pace of saving, and the steps that stay on disk."""

    every: PositiveInt = 5000
    """Steps between checkpoints; one is always written at the end."""
    keep_last: PositiveInt = 2
    """Newest steps that stay."""
    keep_best: NonNegativeInt = 1
    """Best steps by `best_metric` that stay besides."""
    best_metric: Literal[
        "psnr", "l1", "lpips", "codebook_usage", "codebook_perplexity", "rfid", "ssim", "lpips_alex", "lpips_vgg"
    ] = "psnr"
    """Metric of validation that decides which steps are best."""
    checksums: bool = True
    """Write checksums with every step and verify them on load; false saves the reading of very large files."""


class HealthConfig(Section):
    """Limits at which a run warns or stops by itself."""

    max_skipped: NonNegativeInt = 0
    """Batches whose loss or gradient may be not finite: they are skipped, the next one stops the run. 0: the first."""
    stalled_input_seconds: PositiveFloat = 60.0
    """Waiting this long for a batch is told."""
    heartbeat_seconds: PositiveFloat = 10.0
    """Least time between two writes of heartbeat.json."""
    collapse_usage: Fraction = 0.1
    """Used codes, as a share of those that so many tokens could use, below which a codebook has collapsed."""
    collapse_window: PositiveInt = 3
    """Validations in a row that must be below."""
    collapse_steps: PositiveInt = 1000
    """Training steps that must be below: every logging interval of so many, by the codes of all its batches."""
