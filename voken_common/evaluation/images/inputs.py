"""The images that `--input` of a command names: a file, a folder with all that is below it, or a list of files."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, NamedTuple

from voken_common.config.schema.data import DataConfig, ImageFolderConfig
from voken_common.data.decode import identified, reason_of
from voken_common.data.errors import DataError, ImageDecodeError
from voken_common.data.images import SampleLoader
from voken_common.data.sources.folder import IMAGES, FileSource, ListFile
from voken_common.data.sources.listing import found_instead, list_folder, tell_passed_over

logger = logging.getLogger("voken")

_LISTS = (".txt", ".lst", ".tsv")
_OWN = ("psnr.json", "ids.npz")
_TURNED = frozenset({5, 6, 7, 8})
_ORIENTATION = 0x0112


class Files(FileSource):
    """Files that a command was given."""

    def describe(self) -> str:
        """One line for the log."""
        return f"{self.root}: {len(self)} images"


class Found(NamedTuple):
    """Images, and the path of each below the input, by which its outputs are called."""

    source: FileSource
    keys: list[str]


def find_images(path: Path, output: Path | None = None, limit: int | None = None) -> Found:
    """The image itself, the images that a list names, or every image below a folder, sorted.

    Hidden files and folders are not looked at, and files of other kinds are told. What lies in `output`, or in the
    output folder of an earlier call, is not taken for input.

    Args:
        path: of an image, a folder, or a text file of paths.
        output: where results will be written.
        limit: only the first so many.

    Raises:
        FileNotFoundError: nothing there, or no image in the folder.
        DataError: a list that cannot be used, or an output folder that is the input.
    """
    if limit is not None and limit < 1:
        raise DataError(f"--limit {limit}: expected at least 1")
    if path.is_file():
        listed = path.suffix.lower() in _LISTS
        source: FileSource = ListFile(str(path)) if listed else Files(path.parent, [path.name], [0])
    elif path.is_dir():
        source = _below(path, output)
    else:
        raise FileNotFoundError(f"--input {path}: no such file or folder")
    keys = [source.key(index) for index in range(len(source))]
    keys = [os.path.relpath(key, source.root) if Path(key).is_relative_to(source.root) else key for key in keys]
    if limit is not None and limit < len(source):
        keys = keys[:limit]
        source = Files(source.root, keys, [0] * len(keys))
    return Found(source, keys)


def _below(root: Path, output: Path | None) -> FileSource:
    if output is not None and output.resolve() == root.resolve():
        raise DataError(f"--output {output} is the input folder: results would be taken for images; name another one")
    listing = list_folder(root, IMAGES)
    tell_passed_over(root, IMAGES, listing)
    below = [
        os.path.join(name, p) for name, paths in zip(listing.classes, listing.per_class, strict=True) for p in paths
    ]
    results: set[str] = set()
    kept = []
    for name in sorted([*listing.top, *below]):
        if (folder := _results_in(root, name, output)) is None:
            kept.append(name)
        else:
            results.add(folder)
    for folder in sorted(results):
        logger.info("%s holds results of this command: they are not taken for images", root / folder)
    if not kept:
        raise FileNotFoundError(
            f"--input {root}: no image in it; looked for {', '.join(sorted(IMAGES.suffixes))}; {found_instead(listing)}"
        )
    return Files(root, kept, [0] * len(kept))


def _results_in(root: Path, name: str, output: Path | None) -> str | None:
    """The folder above a file that holds results of this command; None: there is none."""
    for parent in list(Path(name).parents)[:-1]:
        folder = root / parent
        if output is not None and folder.resolve() == output.resolve():
            return str(parent)
        if all((folder / own).is_file() for own in _OWN):
            return str(parent)
    return None


def loader_of(source: FileSource, *, side: int, resize: Any, exif_rotate: bool) -> SampleLoader:
    """Reads and decodes images of a source as training does."""
    config = DataConfig(
        train=ImageFolderConfig(path=str(source.root)),
        image_size=side,
        resize=resize,
        exif_rotate=exif_rotate,
        workers=0,
    )
    return SampleLoader(source, config)


def image_size(loader: SampleLoader, index: int) -> tuple[int, int]:
    """Height and width by the header of a file, turned as the pixels will be.

    Raises:
        ImageDecodeError: it cannot be read, or is no image.
    """
    path = loader.source.key(index)
    try:
        with identified(path) as image:
            width, height = image.size
            turned = loader.config.exif_rotate and image.getexif().get(_ORIENTATION) in _TURNED
    # As where images are decoded: damaged files make the decoders raise nearly anything.
    except Exception as error:
        raise ImageDecodeError(f"{path}: {reason_of(error)}") from error
    return (width, height) if turned else (height, width)
