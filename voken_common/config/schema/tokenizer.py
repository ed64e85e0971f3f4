"""The typed, frozen configuration of a tokenizer run.

Every field is named, typed and documented here; the YAML files in `configs/` only choose values. Loading, inheritance,
overrides and the wording of errors live in `voken_common.config.loading`. Cross-field checks are model validators of
the section they concern, so that a wrong combination stops before anything is built.
"""

from __future__ import annotations

from typing import Literal

from pydantic import (
    model_validator,
)

from voken_common.config.schema.adversarial import (
    AdversarialConfig,
    DiscriminatorConfig,
    PatchGANConfig,
    PerceptualConfig,
)
from voken_common.config.schema.base import Section
from voken_common.config.schema.bounds import (
    NonNegativeInt,
)
from voken_common.config.schema.data import DataConfig, VideoFolderConfig
from voken_common.config.schema.model import ModelConfig
from voken_common.config.schema.quantizer import QuantizerConfig
from voken_common.config.schema.relations import check_relations
from voken_common.config.schema.run import (
    CheckpointConfig,
    HealthConfig,
    MeshConfig,
    OptimizerConfig,
    PrecisionConfig,
    TrainingConfig,
    ValidationConfig,
)
from voken_common.config.schema.video import latent_frames


class InitializeConfig(Section):
    """Source of the first weights, if they are not random."""

    inflate: str | None = None
    """Of a video tokenizer: an image tokenizer (a checkpoint, or the name of a published one) of the same widths, whose
    weights and averages are inflated. The discriminator starts anew."""


class Config(Section):
    """A whole run: what is trained, on what, how, and what is kept."""

    kind: Literal["tokenizer"] = "tokenizer"
    """Kind of run."""
    name: str
    """Name of the run; the default work directory is runs/<name>."""
    seed: NonNegativeInt = 0
    """Seed of the initial weights, the data order and all other chance."""
    statistics_scope: Literal["global", "per_device"] = "global"
    """Batch entropy, batch norm and LeCAM means over the global batch, or per device as in the reference."""
    model: ModelConfig
    quantizer: QuantizerConfig
    discriminator: DiscriminatorConfig = PatchGANConfig()
    adversarial: AdversarialConfig = AdversarialConfig()
    perceptual: PerceptualConfig = PerceptualConfig()
    initialize: InitializeConfig = InitializeConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    precision: PrecisionConfig = PrecisionConfig()
    mesh: MeshConfig = MeshConfig()
    data: DataConfig
    training: TrainingConfig
    validation: ValidationConfig = ValidationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    health: HealthConfig = HealthConfig()

    @property
    def lecam_from_start(self) -> bool:
        """True where LeCAM's averages move from the first step, false where only once the discriminator counts."""
        chosen = self.adversarial.lecam_from_start
        return self.model.network == "magvit2" if chosen is None else chosen

    @property
    def generator_first(self) -> bool:
        """True where the generator is updated before the discriminator."""
        chosen = self.adversarial.first
        return self.quantizer.kind == "lfq" if chosen is None else chosen == "generator"

    @property
    def last_layer(self) -> str:
        """Name of the decoder's last convolution, whose gradient the adaptive weight of the generator looks at."""
        return "decoder.conv_out.conv_1" if self.model.is_video else "decoder.conv_out"

    @model_validator(mode="after")
    def _check(self) -> Config:
        asked = self.checkpoint.best_metric
        if asked in ("rfid", "ssim", "lpips_alex", "lpips_vgg") and asked not in self.validation.metrics:
            raise ValueError(f"checkpoint.best_metric {asked} is not measured: add it to validation.metrics")
        if self.validation.metrics and self.data.is_video:
            raise ValueError("validation.metrics are of images: leave them out, and run voken evaluate on clips")
        expected = ("magvit2", "magvit2_video") if self.quantizer.kind == "lfq" else ("vqgan", "magvit2")
        if self.model.network not in expected:
            raise ValueError(
                f"quantizer.kind {self.quantizer.kind} needs model.network {' or '.join(expected)}, found "
                f"{self.model.network}"
            )
        if self.quantizer.kind == "lfq" and self.model.z_channels != self.quantizer.code_dim:
            raise ValueError(
                f"model.z_channels {self.model.z_channels} must equal quantizer.code_dim {self.quantizer.code_dim}: "
                f"LFQ quantizes the encoder's output itself; set model.z_channels to {self.quantizer.code_dim}"
            )
        if getattr(self.quantizer, "shard_codes", False) and self.quantizer.codebook_size % self.mesh.model:
            raise ValueError(
                f"quantizer.shard_codes splits {self.quantizer.codebook_size} codes over mesh.model {self.mesh.model}: "
                "the codebook size must be divisible by it"
            )
        if self.training.batch_size % self.optimizer.gradient_accumulation:
            raise ValueError(
                f"training.batch_size {self.training.batch_size} is not divisible by optimizer.gradient_accumulation "
                f"{self.optimizer.gradient_accumulation}"
            )
        if self.statistics_scope == "per_device" and (self.mesh.fsdp > 1 or self.mesh.model > 1):
            raise ValueError(
                "statistics_scope per_device is data parallelism as in the reference: set mesh.fsdp and mesh.model "
                f"to 1, found {self.mesh.fsdp} and {self.mesh.model}"
            )
        self._check_video()
        check_relations(self)
        if self.optimizer.schedule.drop_epochs and self.training.epochs is None:
            raise ValueError("optimizer.schedule.drop_epochs needs training.epochs; use drop_steps with training.steps")
        return self

    def _check_video(self) -> None:
        network, video = self.model.network, self.model.is_video
        if self.data.is_video != video:
            found, wanted = ("videos", "images") if self.data.is_video else ("images", "videos")
            raise ValueError(f"data gives {found}, and model.network {network} is one for {wanted}: name such a source")
        if (self.discriminator.kind == "patchgan_3d") != video:
            raise ValueError(
                f"model.network {network} needs discriminator.kind "
                f"{'patchgan_3d' if video else 'patchgan or blur'}, found {self.discriminator.kind}"
            )
        if self.initialize.inflate is not None and not video:
            raise ValueError(f"initialize.inflate makes a video tokenizer of an image one, and {network} is for images")
        for source in (self.data.train, self.data.validation):
            if isinstance(source, VideoFolderConfig):
                latent_frames(source.frames, self.model.time_downsampling)
