"""The typed, frozen configuration of a tokenizer run.

Every field is named, typed and documented here; the YAML files in `configs/` only choose values. Loading, inheritance,
overrides and the wording of errors live in `voken_common.config.loading`. Cross-field checks are model validators of
the section they concern, so that a wrong combination stops before anything is built.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    model_validator,
)

from voken_common.config.base import Section
from voken_common.config.bounds import (
    LONGEST_LADDER,
    Channels,
    Factor,
    Layers,
    NonNegativeInt,
    PositiveInt,
    Side,
)
from voken_common.config.data import DataConfig, VideoFolderConfig
from voken_common.config.quantizer import QuantizerConfig
from voken_common.config.relations import check_relations
from voken_common.config.video import PatchGAN3DConfig, latent_frames, video_strides

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class ModelConfig(Section):
    """The autoencoder. `magvit2` is Open-MAGVIT2's network and `magvit2_video` its network of causal 3-D convolutions
    (both for `lfq`), `vqgan` is IBQ's (for `ibq` and `vq`).
    """

    network: Literal["magvit2", "magvit2_video", "vqgan"]
    """Architecture of encoder and decoder."""
    resolution: Side
    """Side of the training images or frames in pixels; decides where attention sits. Other sizes run as well."""
    channels: Channels = 128
    """Width at full resolution; level i is `channels * channel_multipliers[i]` wide."""
    channel_multipliers: tuple[Factor, ...] = Field(min_length=1, max_length=LONGEST_LADDER)
    """One factor per level; every level after the first halves the sides."""
    residual_blocks: Layers
    """Residual blocks per level of the encoder."""
    z_channels: Channels
    """Channels of the latent; for LFQ they are the bits of a code."""
    image_channels: Channels = 3
    """Channels of the images."""
    attention_resolutions: tuple[Side, ...] = ()
    """Sides, in latent pixels at `resolution`, of the levels that have attention; vqgan only."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout inside the residual blocks; vqgan only."""
    adaptive_norm: bool = True
    """Of `magvit2`: the decoder's levels are modulated by its input. False is the network of June 2024."""
    norm_groups: Channels = 32
    """Groups of every group norm, adaptive ones too; 32 in every published model. As many groups as channels at a
    level erase each channel's mean over the image, and with it absolute colour: narrow networks want fewer."""

    @property
    def downsampling(self) -> int:
        """Pixels per token along one side."""
        return 2 ** (len(self.channel_multipliers) - 1)

    @property
    def is_video(self) -> bool:
        """True where the network sees clips (an image is a clip of one frame), false where it sees images."""
        return self.network == "magvit2_video"

    @property
    def level_strides(self) -> tuple[tuple[int, ...], ...]:
        """Factor along (height, width), or (time, height, width), between each level and the next smaller one."""
        if not self.is_video:
            return ((2, 2),) * (len(self.channel_multipliers) - 1)
        return video_strides(self.channel_multipliers)

    @property
    def time_downsampling(self) -> int:
        """Frames per latent frame after the first: n frames become (n - 1) / time_downsampling + 1. 1 for images."""
        return math.prod(stride[0] for stride in self.level_strides) if self.is_video else 1

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if self.resolution % self.downsampling:
            raise ValueError(
                f"resolution {self.resolution} is not divisible by the downsampling factor {self.downsampling} "
                f"that {len(self.channel_multipliers)} channel_multipliers give"
            )
        for multiplier in self.channel_multipliers:
            if self.channels * multiplier % self.norm_groups:
                raise ValueError(
                    f"channels * multiplier = {self.channels} * {multiplier} is not divisible by the "
                    f"{self.norm_groups} groups of group norm (norm_groups); choose channels as a multiple of "
                    f"{self.norm_groups}, or another norm_groups"
                )
        levels = [self.resolution // 2**i for i in range(len(self.channel_multipliers))]
        missing = [r for r in self.attention_resolutions if r not in levels]
        if missing:
            raise ValueError(
                f"attention_resolutions {missing} are never reached: with resolution {self.resolution} the levels are "
                f"{levels}"
            )
        if self.network != "vqgan" and self.attention_resolutions:
            raise ValueError(f"network {self.network} has no attention: leave attention_resolutions empty or use vqgan")
        if self.network != "magvit2" and not self.adaptive_norm:
            raise ValueError(f"network {self.network} has no network of June 2024: set adaptive_norm to true")
        if self.network != "vqgan" and self.dropout:
            raise ValueError(f"network {self.network} has no dropout: set dropout to 0 or use vqgan")
        return self


class PatchGANConfig(Section):
    """Patch discriminator with batch norm."""

    kind: Literal["patchgan"] = "patchgan"
    """Kind of this section."""
    channels: Channels = 64
    """Width of the first layer; each layer doubles it up to 8 times."""
    layers: Layers = 3
    """Strided layers after the first."""

    @property
    def strides(self) -> tuple[tuple[int, int], ...]:
        """Along (height, width), of every convolution."""
        return ((2, 2),) * self.layers + ((1, 1), (1, 1))


class BlurConfig(Section):
    """Discriminator that downsamples with a binomial blur (or with 2x2 average pooling) and group norm."""

    kind: Literal["blur"] = "blur"
    """Kind of this section."""
    hidden_channels: Channels = 128
    """Width of the first layer; stage i has 2^i times as many."""
    stages: Layers = 4
    """Stages, each of which halves the sides."""
    blur_resample: bool = True
    """True downsamples with a binomial blur, false with 2 x 2 average pooling."""
    blur_kernel_size: Annotated[int, Field(ge=3, le=5)] = 4
    """Length of the binomial kernel: 3, 4 or 5."""

    @model_validator(mode="after")
    def _check(self) -> BlurConfig:
        if self.hidden_channels % 32:
            raise ValueError(f"hidden_channels {self.hidden_channels} is not divisible by the 32 groups of group norm")
        return self


DiscriminatorConfig = Annotated[PatchGANConfig | PatchGAN3DConfig | BlurConfig, Field(discriminator="kind")]


class AdversarialConfig(Section):
    """How the two players' losses are weighted."""

    objective: Literal["hinge", "vanilla", "non_saturating"] = "hinge"
    """Loss of the discriminator."""
    generator_weight: NonNegativeFloat | None = 0.1
    """None: adaptive weight, adaptive_scale * |d nll / d w| / (|d g / d w| + 1e-4), w the decoder's last kernel."""
    adaptive_scale: NonNegativeFloat = 0.8
    """Factor on the adaptive weight; used when generator_weight is null."""
    discriminator_factor: NonNegativeFloat = 1.0
    """Factor on both adversarial terms from `start_step` on."""
    start_step: NonNegativeInt = 0
    """Both adversarial terms are 0 before this step; the passes and the optimizer steps happen all the same."""
    lecam_weight: NonNegativeFloat = 0.05
    """Weight of the LeCAM regulariser in the loss of the discriminator."""
    lecam_decay: Fraction = 0.999
    """Decay of the averages of the logits that LeCAM uses."""
    lecam_from_start: bool | None = None
    """Move LeCAM's averages from the first step, or only once `start_step` is reached; None: as the reference does for
    the network, from the start for magvit2."""
    first: Literal["generator", "discriminator"] | None = None
    """The player that is updated first; the other meets the updated one, except that the discriminator after the
    generator keeps its reconstruction. None: as the reference does, the generator for LFQ."""


class PerceptualConfig(Section):
    """LPIPS with VGG16. `weights`: none (no perceptual loss), auto (cache, else download) or a folder."""

    weights: str = "auto"
    """LPIPS weights: none (train without), auto (cache, else download) or a folder."""
    weight: NonNegativeFloat = 1.0
    """Weight of the perceptual loss beside the absolute difference."""


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
    """When and how the EMA weights are evaluated."""

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
    """Which steps stay on disk."""

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
    """When a run warns, and when it stops by itself."""

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


class InitializeConfig(Section):
    """What the first weights are, where they are not random."""

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
