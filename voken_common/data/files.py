"""Images as single files: a folder in ImageNet layout or flat, or a list of paths."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from voken_common.data.errors import DataError
from voken_common.data.sources import ImageSource

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")

EXPECTED_TREE = """\
  {root}/                      or   {root}/
    n01440764/                        first.jpg
      n01440764_10026.JPEG            second.png
    n01443537/                        ...
      ...                           (flat: one class)
  (one folder per class)"""

_SHOWN = 5
_SPLITS = frozenset({"train", "val", "valid", "validation", "test"})


class StringTable(Sequence[str]):
    """An immutable list of strings as one block of bytes: a million paths take 40 MB, here and in every worker."""

    def __init__(self, strings: Iterable[str]):
        encoded = [os.fsencode(string) for string in strings]
        self._ends = np.cumsum([len(item) for item in encoded], dtype=np.int64)
        self._bytes = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        start = int(self._ends[index - 1]) if index else 0
        return os.fsdecode(self._bytes[start : int(self._ends[index])])


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
        with open(self.key(index), "rb") as file:
            return file.read(), int(self._labels[index])

    def key(self, index: int) -> str:
        """Full path of the file."""
        return os.path.join(self.root, self._paths[index])


class ImageFolder(FileSource):
    """All images of a folder, sorted. The label is the index of the class among the sorted class folders.

    Class folders may have folders of their own. Names that begin with a dot are not looked at.

    Raises:
      DataError: there is no such folder, or no images in it, or it looks like the parent of the folder that is meant.
    """

    def __init__(self, path: str, *, exclude: Iterable[str] = ()):
        root = Path(path).expanduser()
        excluded = frozenset(exclude)
        folders, files = _listing(root)
        images = [name for name in files if _is_image(name) and name not in excluded]
        per_class = [
            [os.path.join(folder, name) for name in _images_below(root / folder, excluded)] for folder in folders
        ]
        nested = any(per_class)
        if images and nested:
            filled = [folder for folder, found in zip(folders, per_class, strict=True) if found]
            raise DataError(
                f"{root} holds both images ({_some(images)}) and folders of images ({_some(filled)}), so that neither "
                f"the flat nor the class layout fits. Expected\n{EXPECTED_TREE.format(root=root)}"
            )
        if nested:
            _refuse_parent_of_splits(root, folders)
        elif not images:
            raise DataError(
                f"no images in {root}: {_found(folders, files)}; looked for {', '.join(IMAGE_SUFFIXES)} there and in "
                f"its folders. Expected\n{EXPECTED_TREE.format(root=root)}"
            )
        self.classes: tuple[str, ...] = tuple(folders) if nested else ()
        if nested:
            labels = np.repeat(np.arange(len(folders), dtype=np.int32), [len(found) for found in per_class])
            super().__init__(root, (name for found in per_class for name in found), labels)
        else:
            super().__init__(root, images, np.zeros(len(images), np.int32))

    def describe(self) -> str:
        """One line for the log."""
        layout = f"{len(self.classes)} classes" if self.classes else "flat"
        return f"image folder {self.root}: {len(self)} images, {layout}"


class ListFile(FileSource):
    """The images that a text file names, one `PATH` or `PATH<TAB>LABEL` per line, in the order of the list.

    Raises:
      DataError: the list cannot be read, is empty or malformed, or none of its first files exist.
    """

    def __init__(self, path: str, *, root: str | None = None):
        self.path = Path(path).expanduser()
        base = self.path.parent if root is None else Path(root).expanduser()
        if not self.path.is_file():
            what = "is a folder" if self.path.is_dir() else _nearest(self.path)
            raise DataError(
                f"no list file at {self.path}: {what}. Expected a text file with one image per line, as\n"
                "  some/folder/image.jpg\nor, with a tab between path and integer label,\n  some/folder/image.jpg\t7"
            )
        try:
            text = self.path.read_text(encoding="utf-8")
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
        for number, line in enumerate(text.splitlines(), start=1):
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


def _listing(root: Path) -> tuple[list[str], list[str]]:
    """Sorted names of the folders and of the files in a folder, without hidden ones."""
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else _nearest(root)
        raise DataError(f"no image folder at {root}: {what}. Expected\n{EXPECTED_TREE.format(root=root)}")
    try:
        with os.scandir(root) as entries:
            named = sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"cannot list the image folder {root}: {error.strerror}") from error
    return [name for name, is_folder in named if is_folder], [name for name, is_folder in named if not is_folder]


def _images_below(folder: Path, excluded: frozenset[str]) -> list[str]:
    """Sorted paths of the images in a folder and its folders, relative to it."""

    def walk() -> Iterator[str]:
        for parent, children, names in os.walk(folder):
            children[:] = [child for child in children if not child.startswith(".")]
            relative = os.path.relpath(parent, folder)
            for name in names:
                if _is_image(name) and name not in excluded:
                    yield name if relative == "." else os.path.join(relative, name)

    return sorted(walk())


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def _refuse_parent_of_splits(root: Path, folders: list[str]) -> None:
    if set(folders) <= _SPLITS:
        raise DataError(
            f"{root} holds the folders {_some(folders)}, which are splits and not classes: name one of them, as "
            f"{root / folders[0]}"
        )


def _nearest(path: Path) -> str:
    """What there is on the way to a path that does not exist."""
    parent = next((parent for parent in path.absolute().parents if parent.is_dir()), Path("/"))
    with os.scandir(parent) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    return f"it does not exist; {parent} exists and holds {_some(names) or 'nothing'}"


def _found(folders: list[str], files: list[str]) -> str:
    if not folders and not files:
        return "it is empty"
    parts = [
        f"{len(names)} {what} ({_some(names)})" for names, what in ((folders, "folders"), (files, "files")) if names
    ]
    return "found " + " and ".join(parts)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown
