"""Images as single files: a folder in ImageNet layout or flat, or a list of paths."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Int32

from voken_common.data.decode import IMAGE_SUFFIXES
from voken_common.data.errors import DataError, some
from voken_common.data.labels import class_names
from voken_common.data.sources.base import ImageSource
from voken_common.data.sources.listing import (
    Medium,
    found_instead,
    has_tars,
    list_folder,
    nearest,
    tell_passed_over,
    top_names,
)
from voken_common.data.storage.array_file import StringTable
from voken_common.data.storage.files import is_url
from voken_common.untrusted.files import LARGEST_IMAGE, LARGEST_LIST, read_bytes, read_text

EXPECTED_TREE = """\
  {root}/                      or   {root}/
    n01440764/                        first.jpg
      n01440764_10026.JPEG            second.png
    n01443537/                        ...
      ...                           (flat: one class)
  (one folder per class)"""

IMAGES = Medium("image", IMAGE_SUFFIXES, EXPECTED_TREE)
_SHOWN = 5
_SPLITS = frozenset({"train", "val", "valid", "validation", "test"})


class FileSource(ImageSource):
    """Files below a root, with labels."""

    def __init__(self, root: Path, paths: Iterable[str], labels: Sequence[int] | Int32[np.ndarray, " n"]):
        self.root = root
        self._paths = StringTable(paths)
        self._labels = np.asarray(labels, np.int32)

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, index: int) -> tuple[bytes, int]:
        """The file as it is, and its class."""
        return read_bytes(self.key(index), LARGEST_IMAGE), int(self._labels[index])

    def key(self, index: int) -> str:
        """Full path of the file."""
        return os.path.join(self.root, self._paths[index])

    def folder(self, index: int) -> str:
        """The root."""
        return str(self.root)

    def _used(self) -> list[int]:
        found: list[int] = np.unique(self._labels).tolist()
        return found

    def _renumber(self, numbers: Int32[np.ndarray, " k"]) -> None:
        self._labels = numbers[self._labels]

    def order_fingerprint(self) -> int:
        """Fingerprint of the names below the root, in their order, so that the same files may lie elsewhere."""
        return self._paths.checksum()


class MediaFolder(FileSource):
    """All files of a kind in a folder, sorted. The label is the index of the class among the sorted class folders.

    Class folders may have folders of their own. Names that begin with a dot are not looked at.

    Raises:
      DataError: there is no such folder, or nothing of the kind in it, or it looks like the parent of the folder that
        is meant.
    """

    medium: ClassVar[Medium]

    def __init__(self, path: str, *, exclude: Iterable[str] = (), list_cache: str | None = None):
        root, medium = Path(path).expanduser(), self.medium
        if is_url(path):
            raise DataError(
                f"{path}: folders of {medium.noun}s are read from file systems only; of object stores tars are read "
                "(data.train.kind tar)"
            )
        found = list_folder(root, medium, list_cache).without(frozenset(exclude))
        nested = any(found.per_class)
        expected = f"Expected\n{medium.expected.format(root=root)}"
        if found.top and nested:
            filled = [name for name, paths in zip(found.classes, found.per_class, strict=True) if paths]
            raise DataError(
                f"{root} holds both {medium.noun}s ({some(found.top)}) and folders of {medium.noun}s ({some(filled)}), "
                f"so that neither the flat nor the class layout fits. {expected}"
            )
        if nested:
            _refuse_parent_of_splits(root, found.classes)
        elif not found.top:
            tars = "Tars are read by kind tar or imagenet_tar. " if has_tars(found) else ""
            raise DataError(
                f"no {medium.noun}s in {root}: {found_instead(found)}; looked for {', '.join(medium.suffixes)} there "
                f"and in its folders. {tars}{expected}"
            )
        self.classes = class_names(found.classes) if nested else ()
        tell_passed_over(root, medium, found)
        if nested:
            labels = np.repeat(np.arange(len(found.classes), dtype=np.int32), [len(p) for p in found.per_class])
            folders = zip(found.classes, found.per_class, strict=True)
            super().__init__(root, (os.path.join(name, path) for name, paths in folders for path in paths), labels)
        else:
            super().__init__(root, found.top, np.zeros(len(found.top), np.int32))

    def describe(self) -> str:
        """One line for the log."""
        layout = f"{len(self.classes)} classes" if self.classes else "flat"
        return f"{self.medium.noun} folder {self.root}: {len(self)} {self.medium.noun}s, {layout}"


def folder_classes(root: Path, medium: Medium) -> tuple[str, ...]:
    """Names of the classes that a folder has, without listing what is in them; empty for a flat one.

    Raises:
      DataError: there is no such folder, or it cannot be listed.
    """
    folders, files = top_names(root, medium)
    return () if any(medium.matches(name) for name in files) else class_names(folders)


class ImageFolder(MediaFolder):
    """A folder of images in ImageNet layout or flat."""

    medium = IMAGES


class ListFile(FileSource):
    """The images that a text file names, one `PATH` or `PATH<TAB>LABEL` per line, in the order of the list.

    Raises:
      DataError: the list cannot be read, is empty or malformed, or none of its first files exist.
    """

    def __init__(self, path: str, *, root: str | None = None):
        self.path = Path(path).expanduser()
        base = self.path.parent if root is None else Path(root).expanduser()
        if not self.path.is_file():
            what = "is a folder" if self.path.is_dir() else nearest(self.path)
            raise DataError(
                f"no list file at {self.path}: {what}. Expected a text file with one image per line, as\n"
                "  some/folder/image.jpg\nor, with a tab between path and integer label,\n  some/folder/image.jpg\t7"
            )
        try:
            # With or without a byte-order mark.
            text = read_text(self.path, LARGEST_LIST).removeprefix("\ufeff")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read the list file {self.path} as UTF-8 text: {error}") from error
        paths, labels = self._parse(text)
        super().__init__(base, paths, labels)
        first = [self.key(index) for index in range(min(_SHOWN, len(self)))]
        if not any(os.path.exists(key) for key in first):
            raise DataError(
                f"the first {len(first)} files of {self.path} do not exist: {', '.join(first)}. Relative paths start "
                f"at {base}; name another start with data.train.root (or data.validation.root)"
            )

    def _parse(self, text: str) -> tuple[list[str], list[int]]:
        paths, labels, labelled = [], [], []
        # Not splitlines: names may hold what Unicode counts as an end of line.
        for number, line in enumerate(text.split("\n"), start=1):
            if not line.strip():
                continue
            name, tab, label = line.rstrip().partition("\t")
            if tab and not label.strip().isdecimal():
                raise DataError(
                    f"{self.path}, line {number}: label {label.strip()!r} after the tab is not an integer from 0"
                )
            paths.append(name)
            labels.append(int(label) if tab else 0)
            labelled.append(bool(tab))
            if labelled[0] != labelled[-1]:
                raise DataError(
                    f"{self.path}, line {number} has {'a' if tab else 'no'} label, unlike the lines before it: "
                    "label all images or none"
                )
        if not paths:
            raise DataError(f"the list file {self.path} names no images: expected one PATH or PATH<TAB>LABEL per line")
        return paths, labels

    def describe(self) -> str:
        """One line for the log."""
        return f"list file {self.path}: {len(self)} images, {int(self._labels.max()) + 1} classes"


def _refuse_parent_of_splits(root: Path, folders: list[str]) -> None:
    if set(folders) <= _SPLITS:
        raise DataError(
            f"{root} holds the folders {some(folders)}, which are splits and not classes: name one of them, as "
            f"{root / folders[0]}"
        )
