"""The `data` section of a configuration: where images come from and how they become arrays."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    model_validator,
)

from voken_common.config.schema.base import Section
from voken_common.config.schema.bounds import PositiveInt, Side, Workers

NonEmpty = Annotated[str, Field(min_length=1)]
RETRY_SECONDS = 300.0
"""How long a read that fails for a reason that may pass is tried again, by default."""


class ImageFolderConfig(Section):
    """A folder of images: ImageNet layout (`PATH/<class>/*.JPEG`) or flat (`PATH/*.png`), found by looking."""

    kind: Literal["image_folder"] = "image_folder"
    """Kind of this section."""
    path: NonEmpty
    """The folder."""
    exclude: tuple[NonEmpty, ...] = ()
    """File names to leave out."""
    list_cache: NonEmpty | None = None
    """File to keep the list of files in; it is used as long as no folder has changed."""


class ListFileConfig(Section):
    """A text file with one image per line: `PATH` or `PATH<TAB>LABEL`, relative to `root` or to the list file."""

    kind: Literal["list_file"] = "list_file"
    """Kind of this section."""
    path: NonEmpty
    """The list."""
    root: NonEmpty | None = None
    """Folder that relative paths start from; null: that of the list."""


class TFDSConfig(Section):
    """A TensorFlow Datasets image set prepared with file_format=array_record; TensorFlow is not needed to read it."""

    kind: Literal["tfds"] = "tfds"
    """Kind of this section."""
    name: NonEmpty
    """Name of the data set, such as imagenet2012."""
    split: NonEmpty
    """Split, such as train or validation[:1000]."""
    data_dir: NonEmpty | None = None
    """Folder of the prepared data sets; null: the one that TFDS uses."""
    image_key: NonEmpty = "image"
    """Feature that holds the image."""
    label_key: NonEmpty | None = "label"
    """Feature that holds the label; null: no labels."""


class SkimageConfig(Section):
    """The photographs bundled with scikit-image; `region` keeps training and held-out pixels apart."""

    kind: Literal["skimage"] = "skimage"
    """Kind of this section."""
    region: Literal["train", "held_out", "all"]
    """Part of every photograph: train (left), held_out (right) or all."""
    crops: PositiveInt | None = None
    """Samples per epoch, dealt out to the photographs in turn; None: one per photograph, cropped centrally. Where
    crops are not random (validation, or `crop: center`) their positions are a fixed even spread over the region."""


class TarSetConfig(Section):
    """A set of text-to-image tars that `python -m voken_common.data.tar.prepare` has checked."""

    index: NonEmpty
    """The `.index` file that the command wrote."""
    location: NonEmpty | None = None
    """Folder or URL of the tars, if they are not where they were checked."""
    filter_keys: NonEmpty | None = None
    """A filter-keys file: JSON, {tar: [names of members or samples to leave out]}, in addition to the bad ones."""
    weight: PositiveFloat | None = None
    """Share of the training samples, relative to the other sets; None, for all sets: by their number of images."""


class TarConfig(Section):
    """Sets of text-to-image tars, shuffled as one, or mixed by weights. Captions are not read."""

    kind: Literal["tar"] = "tar"
    """Kind of this section."""
    sets: Annotated[tuple[TarSetConfig, ...], Field(min_length=1)]
    """The sets."""

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        weighted = [entry.weight is not None for entry in self.sets]
        if any(weighted) and not all(weighted):
            raise ValueError("some sets have a weight and some have none: give all of them one, or none")
        return self


class ImageNetTarConfig(Section):
    """`ILSVRC2012_img_train.tar`, a tar with one tar per class, or `ILSVRC2012_img_val.tar`; read as it is."""

    kind: Literal["imagenet_tar"] = "imagenet_tar"
    """Kind of this section."""
    path: NonEmpty
    """The archive."""
    index: NonEmpty | None = None
    """File to keep the positions of the images in; None: PATH.index. Finding them reads through the tar once."""
    exclude: tuple[NonEmpty, ...] = ("n06596364_9591.JPEG",)
    """File names to leave out: by default the image that published tokenizers were not trained on."""


class VideoFolderConfig(Section):
    """A folder of videos, in classes as UCF-101 (`PATH/<class>/*.avi`) or flat; gives clips instead of images."""

    kind: Literal["video_folder"] = "video_folder"
    """Kind of this section."""
    path: NonEmpty
    """The folder."""
    frames: Side = 17
    """Frames per clip."""
    stride: Side = 1
    """Take every `stride`-th frame."""
    fps: PositiveFloat | None = None
    """Frames per second at which a video is looked at, before `stride`: the frame that is shown at each of these times,
    twice where the video is slower. None: the video's own frames. Needs time stamps, or a constant rate."""
    short: Literal["refuse", "repeat"] = "refuse"
    """A video with fewer frames than a clip needs counts as bad, or starts again from its first frame."""
    upright: bool = True
    """Turn frames as the display matrix of the video says, as players do; false: as they are stored."""
    exclude: tuple[NonEmpty, ...] = ()
    """File names to leave out."""
    list_cache: NonEmpty | None = None
    """As of an image folder."""


SourceConfig = Annotated[
    ImageFolderConfig | ListFileConfig | TFDSConfig | SkimageConfig | TarConfig | ImageNetTarConfig | VideoFolderConfig,
    Field(discriminator="kind"),
]


def _default_crop(fields: dict[str, Any]) -> Literal["random", "center"]:
    return "center" if isinstance(fields.get("train"), TarConfig) else "random"


class DataConfig(Section):
    """Sources and transforms. Every image or frame ends as float32 RGB in [-1, 1] of side `image_size`."""

    train: SourceConfig
    """Source of the training images."""
    validation: SourceConfig | None = None
    """Source of the held-out images; null: no validation."""
    image_size: Side
    """Side of the images that the network sees, in pixels."""
    validation_image_size: Side | None = None
    """Side of the validation images where it is another one, for figures of images larger than what is trained on."""
    resize: Literal["pil", "cv2", "none"] = "pil"
    """Convention of the short-side resize: pil (antialiased), cv2 (not antialiased), or none: crop from the original
    pixels, enlarging only what is smaller than the crop."""
    crop: Literal["random", "center"] = Field(default_factory=_default_crop)
    """Of the training images; validation never crops randomly. By default central for tars, as the published runs on
    them were, and random for all other sources."""
    flip: bool = False
    """Mirror training images left to right with probability one half."""
    exif_rotate: bool = False
    """Turn images upright by their EXIF tag. Off: pixels stay in stored order, which published figures rest on."""
    reduced_jpeg_decode: bool = False
    """Decode a JPEG at 1/2, 1/4 or 1/8 of its size if that is still as large as needed: faster, but other pixels."""
    resize_crop_only: bool = False
    """In training compute only what the crop keeps of a resized image: faster, but by `pil` (and `none` where it
    enlarges) about one value in a thousand differs by one grey level of 255. By `cv2` the pixels are the same, and it
    is always done."""
    workers: Workers = 8
    """Grain worker processes of the training input; 0 decodes in threads of the main process."""
    read_threads: PositiveInt = 1
    """Batches that each worker process reads at a time; more hide the waiting for an object store."""
    retry_seconds: NonNegativeFloat = RETRY_SECONDS
    """How long a read that fails for a reason that may pass (network, store, disk) is tried again before it stops the
    run; a file that is not there is a bad image at once."""
    max_bad_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.001
    """Undecodable files are reported, counted and skipped up to this fraction of the source."""
    cache: bool = False
    """Keep decoded and resized images in memory, in each worker process its own: for small sets only."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        sources = [source for source in (self.train, self.validation) if source is not None]
        videos = [isinstance(source, VideoFolderConfig) for source in sources]
        if any(videos) and not all(videos):
            raise ValueError("train and validation must both be videos or both be images")
        if any(videos) and self.cache:
            raise ValueError("cache keeps single images; set it to false for videos")
        if self.cache and self.resize_crop_only:
            raise ValueError(
                "cache keeps whole resized images and resize_crop_only makes none: set one of them to false"
            )
        return self

    @property
    def is_video(self) -> bool:
        """True if the sources give clips; a batch then has `video` instead of `image`."""
        return isinstance(self.train, VideoFolderConfig)

    @property
    def pixels(self) -> str:
        """Name of the array in a batch that the network sees."""
        return "video" if self.is_video else "image"
