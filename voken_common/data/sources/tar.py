"""Sets of text-to-image tars, read at random through their indices."""

from __future__ import annotations

import codecs
import json
import os
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from voken_common.config.schema.data import TarConfig, TarSetConfig
from voken_common.data.errors import DataError, some
from voken_common.data.sources.base import ImageSource, Share
from voken_common.data.storage.files import is_url
from voken_common.data.tar.check import sample_key
from voken_common.data.tar.index import TarIndex
from voken_common.untrusted.files import LARGEST_LIST, read_bytes
from voken_common.untrusted.json_text import loads


class TarSet:
    """One set: its index, less what a filter-keys file names.

    Raises:
      DataError: the index or the filter-keys file cannot be read, or nothing is left.
    """

    def __init__(self, config: TarSetConfig, *, verify: bool = True):
        self.index = TarIndex(config.index, config.location, verify=verify)
        self._kept = None if config.filter_keys is None else _kept(self.index, config.filter_keys)

    def __len__(self) -> int:
        return len(self.index) if self._kept is None else len(self._kept)

    def member(self, rank: int) -> int:
        """Return the index number of the image at this position among those that are kept."""
        return rank if self._kept is None else int(self._kept[rank])

    def contents(self) -> int:
        """CRC-32 of which images these are, wherever the tars lie and however old they are."""
        return self.index.contents() if self._kept is None else zlib.crc32(self._kept.data, self.index.contents())


class TarSource(ImageSource):
    """The images of all sets, one set after the other; captions and labels are not read.

    Raises:
      DataError: a set cannot be opened, or its tars are not those that were indexed.
    """

    def __init__(self, config: TarConfig, *, check: bool = True):
        self._config = config
        self._fingerprint: int | None = None
        self._sets = [TarSet(entry, verify=check) for entry in config.sets]
        self._ends = np.cumsum([len(part) for part in self._sets])
        for entry, part in zip(config.sets, self._sets, strict=True):
            if not len(part):
                raise DataError(f"no images are left of the set {entry.index}")
            if check:
                part.index.check()

    def __reduce__(self) -> tuple[object, ...]:
        # Worker processes map the same files again; the main process has checked them.
        return _opened, (self._config,)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _find(self, index: int) -> tuple[TarIndex, int]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        part = self._sets[number]
        return part.index, part.member(index - int(self._ends[number]) + len(part))

    def read(self, index: int) -> tuple[bytes, int]:
        """The encoded image, and class 0."""
        tars, member = self._find(index)
        return tars.read(member), 0

    def key(self, index: int) -> str:
        """Path of the tar and name of the member."""
        tars, member = self._find(index)
        return f"{tars.tar_path(tars.tar_number(member))}:{tars.name(member)}"

    def folder(self, index: int) -> str | None:
        """Return the folder that holds the tars of a set."""
        location = self._find(index)[0].location
        return None if is_url(location) else location

    def describe(self) -> str:
        """One line for the log."""
        sets = [
            f"{os.path.basename(entry.index)} {len(part)}{'' if entry.weight is None else f' x{entry.weight:g}'}"
            for entry, part in zip(self._config.sets, self._sets, strict=True)
        ]
        tars = sum(len(part.index.tars) for part in self._sets)
        return f"{tars} tars of {len(self._sets)} sets: {len(self)} images ({', '.join(sets)})"

    def shares(self) -> tuple[Share, ...] | None:
        """The sets and their weights; None if they have none."""
        if self._config.sets[0].weight is None:
            return None
        starts = [0, *self._ends[:-1].tolist()]
        weights = [entry.weight for entry in self._config.sets if entry.weight is not None]
        return tuple(Share(s, len(p), w) for s, p, w in zip(starts, self._sets, weights, strict=True))

    def order_fingerprint(self) -> int:
        """CRC-32 of what the order of training is made of: the sets' images and weights, in their order."""
        if self._fingerprint is None:
            pairs = zip(self._sets, self._config.sets, strict=True)
            parts = [(part.contents(), len(part), entry.weight) for part, entry in pairs]
            self._fingerprint = zlib.crc32(json.dumps(parts).encode())
        return self._fingerprint


def _opened(config: TarConfig) -> TarSource:
    return TarSource(config, check=False)


def _kept(index: TarIndex, path: str) -> Int64[np.ndarray, " n"]:
    """Numbers of the images that a filter-keys file does not name, by member name or by sample; exactly."""
    try:
        values = loads(read_bytes(Path(path).expanduser(), LARGEST_LIST).removeprefix(codecs.BOM_UTF8))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the filter-keys file {path}: {error}") from error
    lists = list(values.values()) if isinstance(values, dict) else [None]
    if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists):
        raise DataError(f"filter-keys file {path}: expected a JSON object of lists, {{tar: [names of bad members]}}")
    bad: dict[str, frozenset[str]] = {}
    for tar, names in values.items():
        bad[os.path.basename(tar)] = bad.get(os.path.basename(tar), frozenset()) | frozenset(names)
    if bad and not bad.keys() & set(index.tars):
        raise DataError(
            f"filter-keys file {path} names the tars {some(sorted(bad))}, of which the index {index.path} has none (it "
            f"has {some(index.tars)}): it belongs to another set"
        )
    kept = [_kept_of_tar(index, index.images_of(n), bad.get(tar, frozenset())) for n, tar in enumerate(index.tars)]
    return np.concatenate(kept)


def _kept_of_tar(index: TarIndex, images: range, bad: frozenset[str]) -> Int64[np.ndarray, " m"]:
    if not bad:
        return np.arange(images.start, images.stop, dtype=np.int64)
    return np.array([i for i in images if not bad & {index.name(i), sample_key(index.name(i))[0]}], np.int64)
