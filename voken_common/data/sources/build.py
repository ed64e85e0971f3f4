"""From a configuration to the source of images that it names."""

from __future__ import annotations

from pathlib import Path

from voken_common.config.schema.data import (
    ImageFolderConfig,
    ImageNetTarConfig,
    ListFileConfig,
    SkimageConfig,
    SourceConfig,
    TarConfig,
    TFDSConfig,
    VideoFolderConfig,
)
from voken_common.data.sources.base import ImageSource


def build_source(config: SourceConfig) -> ImageSource:
    """Open the source that a configuration names.

    Raises:
      DataError: it is not there or not of the expected form; the message says what was found and what was expected.
    """
    # Imported here because each kind may need a package that the others do not.
    match config:
        case ImageFolderConfig():
            from voken_common.data.sources.folder import ImageFolder

            return ImageFolder(config.path, exclude=config.exclude, list_cache=config.list_cache)
        case ListFileConfig():
            from voken_common.data.sources.folder import ListFile

            return ListFile(config.path, root=config.root)
        case TFDSConfig():
            from voken_common.data.sources.tfds import TFDSSource

            return TFDSSource(config)
        case SkimageConfig():
            from voken_common.data.sources.skimage import Photographs

            return Photographs(config.region, crops=config.crops)
        case TarConfig():
            from voken_common.data.sources.tar import TarSource

            return TarSource(config)
        case ImageNetTarConfig():
            from voken_common.data.sources.imagenet_tar import ImageNetTar

            return ImageNetTar(config)
        case VideoFolderConfig():
            from voken_common.data.sources.video import VideoFolder

            return VideoFolder(config)
    raise AssertionError(config)


def classes_of(config: SourceConfig) -> tuple[str, ...]:
    """Names of the classes of a source by number, found as cheaply as its kind allows; empty where they have none.

    Raises:
      DataError: the source cannot be opened.
    """
    match config:
        case ImageFolderConfig() | VideoFolderConfig():
            from voken_common.data.sources.folder import IMAGES, folder_classes
            from voken_common.data.sources.video import VideoFolder

            medium = IMAGES if isinstance(config, ImageFolderConfig) else VideoFolder.medium
            return folder_classes(Path(config.path).expanduser(), medium)
        case ImageNetTarConfig() | TFDSConfig():
            return build_source(config).classes
    return ()
