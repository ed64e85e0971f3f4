"""Read the archives of ImageNet as they are downloaded, without unpacking a million files.

`ILSVRC2012_img_train.tar` holds one tar per class, `ILSVRC2012_img_val.tar` the images themselves.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from typing import Any

import numpy as np
from jaxtyping import Int32

from voken_common.config.schema.data import ImageNetTarConfig
from voken_common.data.decode import is_image_name
from voken_common.data.errors import DataError
from voken_common.data.labels import class_names
from voken_common.data.sources.base import ImageSource
from voken_common.data.storage import files as storage
from voken_common.data.storage.array_file import ArrayFileError, StringTable, map_arrays, pack_strings, write_arrays
from voken_common.data.tar.format import TarDamageError, TarMember, walk_tar
from voken_common.data.tar.index import Fingerprint, read_member

logger = logging.getLogger("voken.data")

_VERSION = 1
_EXPECTED = """\
  ILSVRC2012_img_train.tar          or   ILSVRC2012_img_val.tar
    n01440764.tar                          ILSVRC2012_val_00000001.JPEG
      n01440764_10026.JPEG                 ..."""


class ImageNetTar(ImageSource):
    """The images of such an archive, by class and name. The label is the index of the class among the sorted ones.

    Raises:
      DataError: the archive cannot be read, is damaged, or holds something else.
    """

    def __init__(self, config: ImageNetTarConfig):
        self.path = storage.normalized(config.path)
        self._config = config
        self._fingerprint: int | None = None
        index = config.index or f"{self.path}.index"
        if config.index is None and storage.is_url(self.path):
            raise DataError(f"{self.path}: name a file for the positions of its images: data.train.index: FILE")
        try:
            fingerprint = Fingerprint.of(self.path)
        except OSError as error:
            raise DataError(f"no ImageNet archive at {self.path}: {error.strerror or error}") from error
        arrays, about = _kept(index, self.path, fingerprint) or _indexed(index, self.path, fingerprint)
        self.classes, self._folders = class_names(about["classes"]), [f"{name}.tar/" for name in about["classes"]]
        names = StringTable.of_arrays(arrays["name_bytes"], arrays["name_ends"])
        excluded = frozenset(config.exclude)
        kept = [i for i in range(len(names)) if os.path.basename(names[i]) not in excluded]
        self._names = StringTable(names[i] for i in kept)
        self._start, self._size = arrays["start"][kept], arrays["size"][kept]
        self._header_crc, self._labels = arrays["header_crc"][kept], arrays["label"][kept]
        self._stored = self._labels
        if not kept:
            raise DataError(f"{self.path}: all its images are excluded")

    def __len__(self) -> int:
        return len(self._start)

    def read(self, index: int) -> tuple[bytes, int]:
        """The encoded image and its class."""
        start, size = int(self._start[index]), int(self._size[index])
        data = read_member(self.path, start, size, int(self._header_crc[index]))
        if data is None:
            raise DataError(
                f"{self.path} changed while it was in use: {self.key(index)} is not at byte {start} any more"
            )
        return data, int(self._labels[index])

    def key(self, index: int) -> str:
        """The archive, the class and the file."""
        folder = self._folders[self._stored[index]] if self._folders else ""
        return f"{self.path}:{folder}{self._names[index]}"

    def _used(self) -> list[int]:
        found: list[int] = np.unique(self._labels).tolist()
        return found

    def _renumber(self, numbers: Int32[np.ndarray, " k"]) -> None:
        self._labels = numbers[self._labels]

    def folder(self, index: int) -> str | None:
        """That of the archive."""
        return None if storage.is_url(self.path) else os.path.dirname(self.path)

    def order_fingerprint(self) -> int:
        """Fingerprint of the folder to which the archive would be unpacked: one may replace the other."""
        if self._fingerprint is None:
            folders = [f"{name.removesuffix('.tar/')}/" for name in self._folders] or [""]
            pairs = zip(self._stored, self._names, strict=True)
            self._fingerprint = StringTable(f"{folders[label]}{name}" for label, name in pairs).checksum()
        return self._fingerprint

    def describe(self) -> str:
        """One line for the log."""
        layout = f"{len(self.classes)} classes" if self.classes else "flat"
        return f"ImageNet archive {self.path}: {len(self)} images, {layout}"


def _kept(index: str, path: str, fingerprint: Fingerprint) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The positions found by an earlier run, if the archive is the same."""
    try:
        arrays, about = map_arrays(index)
        if about["version"] != _VERSION:
            return None
        before = Fingerprint(*about["fingerprint"])
        same = before.change(path, storage.FileInfo(fingerprint.size, fingerprint.modified)) is None
        lengths = {len(arrays[name]) for name in ("start", "size", "header_crc", "label", "name_ends")}
        return (arrays, about) if same and len(lengths) == 1 else None
    except FileNotFoundError:
        return None
    except (OSError, ArrayFileError, KeyError, TypeError) as error:
        logger.warning("the positions kept in %s are of no use (%s) and found anew", index, error)
        return None


def _indexed(index: str, path: str, fingerprint: Fingerprint) -> tuple[dict[str, Any], dict[str, Any]]:
    """Find the images by reading all headers, and keep their positions in `index`."""
    logger.info("finding the images in %s; their positions are kept in %s", path, index)
    try:
        with storage.open_reading(path) as file:
            classes, found = _find(file, fingerprint.size)
    except TarDamageError as error:
        raise DataError(f"{path}: {error}. Expected\n{_EXPECTED}\nDownload it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not found:
        raise DataError(f"no images in {path}. Expected\n{_EXPECTED}")
    name_bytes, name_ends = pack_strings(member.name for _, member in found)
    arrays: dict[str, np.ndarray] = {
        "start": np.array([member.start for _, member in found], np.int64),
        "size": np.array([member.size for _, member in found], np.uint32),
        "header_crc": np.array([member.header_crc for _, member in found], np.uint32),
        "label": np.array([label for label, _ in found], np.int32),
        "name_bytes": name_bytes,
        "name_ends": name_ends,
    }
    about = {"version": _VERSION, "classes": classes, "fingerprint": dataclasses.astuple(fingerprint)}
    try:
        write_arrays(index, arrays, about)
    except OSError as error:
        logger.warning(
            "cannot keep the positions in %s (%s): every start finds them anew; name another place with "
            "data.train.index",
            index,
            error.strerror or error,
        )
    return arrays, about


def _find(file: Any, length: int) -> tuple[list[str], list[tuple[int, TarMember]]]:
    """Sorted class names, and (label, member) by class and name; positions are those in the whole archive."""
    inner: dict[str, TarMember] = {}
    top: list[TarMember] = []
    for member in walk_tar(file, length):
        base = os.path.basename(member.name)
        if base.endswith(".tar") and not base.startswith("."):
            inner[base.removesuffix(".tar")] = member
        elif is_image_name(base):
            top.append(member)
    if top and inner:
        raise TarDamageError("it holds both images and tars")
    classes = sorted(inner)
    found = [(0, member) for member in top]
    for label, name in enumerate(classes):
        file.seek(inner[name].start)
        try:
            members = list(walk_tar(file, inner[name].size))
        except TarDamageError as error:
            raise TarDamageError(f"{name}.tar in it: {error}") from error
        offset = inner[name].start
        found += [
            (label, dataclasses.replace(member, start=member.start + offset))
            for member in members
            if is_image_name(os.path.basename(member.name))
        ]
    return classes, sorted(found, key=lambda item: (item[0], item[1].name))
