"""The `data` section of a configuration: where images come from and how they become arrays."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

NonEmpty = Annotated[str, Field(min_length=1)]


class DataSection(BaseModel):
    """Immutable; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ImageFolderConfig(DataSection):
    """A folder of images: ImageNet layout (`PATH/<class>/*.JPEG`) or flat (`PATH/*.png`), found by looking."""

    kind: Literal["image_folder"] = "image_folder"
    path: NonEmpty
    exclude: tuple[NonEmpty, ...] = ()
    """File names to leave out."""


class ListFileConfig(DataSection):
    """A text file with one image per line: `PATH` or `PATH<TAB>LABEL`, relative to `root` or to the list file."""

    kind: Literal["list_file"] = "list_file"
    path: NonEmpty
    root: NonEmpty | None = None


class TFDSConfig(DataSection):
    """A TensorFlow Datasets image set prepared with file_format=array_record; TensorFlow is not needed to read it."""

    kind: Literal["tfds"] = "tfds"
    name: NonEmpty
    split: NonEmpty
    data_dir: NonEmpty | None = None
    image_key: NonEmpty = "image"
    label_key: NonEmpty | None = "label"


class SkimageConfig(DataSection):
    """The photographs bundled with scikit-image; `region` keeps training and held-out pixels apart."""

    kind: Literal["skimage"] = "skimage"
    region: Literal["train", "held_out", "all"]
    crops: PositiveInt | None = None
    """Samples per epoch, dealt out to the photographs in turn; None: one per photograph, cropped centrally. Where
    crops are not random (validation, or `crop: center`) their positions are a fixed even spread over the region."""


SourceConfig = Annotated[ImageFolderConfig | ListFileConfig | TFDSConfig | SkimageConfig, Field(discriminator="kind")]


class DataConfig(DataSection):
    """Sources and transforms. Every image ends as float32 RGB in [-1, 1] of side `image_size`."""

    train: SourceConfig
    validation: SourceConfig | None = None
    image_size: PositiveInt
    resize: Literal["pil", "cv2", "none"] = "pil"
    """Convention of the short-side resize: pil (antialiased), cv2 (not antialiased), or none: crop from the original
    pixels, enlarging only what is smaller than the crop."""
    crop: Literal["random", "center"] = "random"
    """Of the training images; validation never crops randomly."""
    flip: bool = False
    """Mirror training images left to right with probability one half."""
    exif_rotate: bool = False
    """Turn images upright by their EXIF tag. Off: pixels stay in stored order, which published figures rest on."""
    workers: NonNegativeInt = 8
    """Grain worker processes of the training input; 0 decodes in threads of the main process."""
    max_bad_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.001
    """Undecodable files are reported, counted and skipped up to this fraction of the source."""
    cache: bool = False
    """Keep decoded and resized images in memory, in each worker process its own: for small sets only."""
