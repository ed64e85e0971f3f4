"""Configuration of a generator's run: a transformer trained on tokens."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, field_validator, model_validator

from voken_common.config.schema.base import Section
from voken_common.config.schema.bounds import NonNegativeInt, PositiveInt, Workers
from voken_common.config.schema.data import RETRY_SECONDS, DataConfig
from voken_common.config.schema.run import (
    Fraction,
    HealthConfig,
    MeshConfig,
    PrecisionConfig,
    ScheduleConfig,
    TrainingConfig,
)
from voken_common.config.schema.sampling import Guidance, Sampling
from voken_common.config.schema.transformer import TransformerConfig

LEAST_TEMPERATURE = 1e-6
Share = Annotated[float, Field(gt=0.0, le=1.0)]


class TokenDataConfig(Section):
    """Token shards, as the encode command writes them, or images that a frozen tokenizer encodes as they come."""

    train: str | None = None
    """Folder of the training shards."""
    validation: str | None = None
    """Folder of held-out shards; none: no validation loss."""
    images: DataConfig | None = None
    """Instead of shards: images for training and, if it names some, for validation; `tokenizer` encodes them."""
    workers: Workers = 0
    """Processes that read shards; images have workers of their own."""
    retry_seconds: NonNegativeFloat = RETRY_SECONDS
    """How long a read of a shard that fails for a reason that may pass (network, disk) is tried again before it stops
    the run; images have a setting of their own."""

    @property
    def held_out(self) -> bool:
        """True if there is anything to validate on."""
        return (self.validation if self.images is None else self.images.validation) is not None

    @model_validator(mode="after")
    def _check(self) -> TokenDataConfig:
        if (self.train is None) == (self.images is None):
            found = "neither" if self.train is None else f"both, train {self.train}"
            raise ValueError(
                f"expected either train (a folder of token shards) or images (encoded as they come), found {found}; "
                "one that a base file sets is unset with null"
            )
        if self.images is not None and self.images.is_video:
            raise ValueError("images gives videos, and generators are for images: use a source of images")
        if self.images is not None and self.validation is not None:
            raise ValueError(
                f"validation {self.validation} names token shards while training reads images: set images.validation"
            )
        return self


class GeneratorOptimizerConfig(Section):
    """AdamW with schedules for the learning rate and the weight decay."""

    learning_rate: PositiveFloat = 3e-4
    """Learning rate before the factor of the schedule."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    """Decays of the first and second moment of Adam."""
    epsilon: PositiveFloat = 1e-8
    """Epsilon of Adam."""
    weight_decay: NonNegativeFloat = 0.05
    """Weight decay (decoupled)."""
    weight_decay_end: NonNegativeFloat = 0.0
    """Where half a cosine over the run takes the weight decay; 0 leaves it as it is."""
    decay_all: bool = True
    """True decays every tensor, as the published runs did; false spares those of one dimension."""
    gradient_clip: PositiveFloat | None = 1.0
    """Largest global norm of the gradient; null: no limit."""
    gradient_accumulation: PositiveInt = 1
    """Micro-batches per optimizer step; the global batch is split into this many."""
    ema_decay: Fraction | None = None
    """None, as in the published runs: no averages."""
    schedule: ScheduleConfig = ScheduleConfig()


class SamplingConfig(Section):
    """Settings of sampling: one value per sub-token."""

    scale: tuple[NonNegativeFloat, ...]
    """Guidance scale; 1 means none."""
    temperature: tuple[NonNegativeFloat, ...]
    """Divides the guided logits; 0 takes the most likely code."""
    top_k: tuple[NonNegativeInt, ...]
    """Codes that stay; 0 means all."""
    top_p: tuple[Share, ...]
    """Probability mass that stays."""
    guidance: Guidance = "constant"
    """Course of the scale over the positions: constant, or rising from 1."""

    @field_validator("temperature")
    @classmethod
    def _check_temperature(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        for value in values:
            if 0 < value < LEAST_TEMPERATURE:
                raise ValueError(
                    f"found {value:g}: expected 0, which takes the likeliest code, or at least {LEAST_TEMPERATURE:g}; "
                    "logits are divided by it in float32, which less would overflow"
                )
        return values

    def settings(self) -> Sampling:
        """Return these settings in the form that the samplers take."""
        return Sampling(self.scale, self.temperature, self.top_k, self.top_p, self.guidance)


class GeneratorValidationConfig(Section):
    """Pace and size of validation: held-out loss, and samples to look at."""

    every: PositiveInt = 5000
    """Steps between validations; one always runs at the end."""
    batch_size: PositiveInt = 64
    """Samples per batch of validation, over all devices."""
    max_samples: PositiveInt | None = None
    """Samples to validate on; null: all."""
    pictures: NonNegativeInt = 8
    """Samples that are drawn and decoded, spread over the classes; they need `tokenizer`."""


class GeneratorCheckpointConfig(Section):
    """Pace of saving, and the steps that stay on disk."""

    every: PositiveInt = 5000
    """Steps between checkpoints; one is always written at the end."""
    keep_last: PositiveInt = 2
    """Newest steps that stay."""
    keep_best: NonNegativeInt = 1
    """Best steps by `best_metric` that stay besides."""
    best_metric: Literal["loss"] = "loss"
    """Metric of validation that decides which steps are best."""
    checksums: bool = True
    """Write checksums with every step and verify them on load; false saves the reading of very large files."""


class GeneratorConfig(Section):
    """A whole run of a generator: what is trained, on what, how, and what is kept."""

    kind: Literal["generator"] = "generator"
    """Kind of run."""
    name: str
    """Name of the run; the default work directory is runs/<name>."""
    seed: NonNegativeInt = 0
    """Seed of the initial weights, the data order and all other chance."""
    tokenizer: str | None = None
    """Checkpoint of the tokenizer, for pictures and `data.images`; a published generator brings its own."""
    tokenizer_fingerprint: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """Of the tokenizer that made the tokens. A run finds it out and its checkpoints hold it; set, it is required."""
    class_names: tuple[str, ...] = ()
    """Names of the classes by number, as the training data has them. A run finds them out and its checkpoints hold
    them; set, the data is numbered by them."""
    model: TransformerConfig
    optimizer: GeneratorOptimizerConfig = GeneratorOptimizerConfig()
    precision: PrecisionConfig = PrecisionConfig()
    mesh: MeshConfig = MeshConfig()
    data: TokenDataConfig
    training: TrainingConfig
    validation: GeneratorValidationConfig = GeneratorValidationConfig()
    checkpoint: GeneratorCheckpointConfig = GeneratorCheckpointConfig()
    health: HealthConfig = HealthConfig()
    sampling: SamplingConfig

    @model_validator(mode="after")
    def _check(self) -> GeneratorConfig:
        parts = len(self.model.vocabularies)
        for key in ("scale", "temperature", "top_k", "top_p"):
            found = getattr(self.sampling, key)
            if len(found) != parts:
                raise ValueError(f"sampling.{key} has {len(found)} value(s), expected one per sub-token: {parts}")
        if self.training.batch_size % self.optimizer.gradient_accumulation:
            raise ValueError(
                f"training.batch_size {self.training.batch_size} is not divisible by optimizer.gradient_accumulation "
                f"{self.optimizer.gradient_accumulation}"
            )
        if self.data.images is not None and self.tokenizer is None:
            raise ValueError("data.images needs tokenizer: the checkpoint of the tokenizer that encodes the images")
        if self.model.heads % self.mesh.model or self.model.feed_forward_width % self.mesh.model:
            raise ValueError(
                f"mesh.model {self.mesh.model} must divide model.heads {self.model.heads} and the feed-forward width "
                f"{self.model.feed_forward_width}: both are split over it"
            )
        if self.optimizer.schedule.drop_epochs and self.training.epochs is None:
            raise ValueError("optimizer.schedule.drop_epochs needs training.epochs; use drop_steps with training.steps")
        return self
