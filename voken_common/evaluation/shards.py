"""Measurements of finished shards on disk: an evaluation that was killed goes on, and processes share one folder.

Shard k holds samples k * size to (k + 1) * size - 1 of a fixed order, whoever measures it and however often it is
tried, so that the numbers at the end depend neither on interruptions nor on the number of processes. A shard is
written whole or not at all.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from voken_common.atomic_write import replacing
from voken_common.errors import WorkdirError

_RECORD = "settings.json"
Arrays = Mapping[str, np.ndarray]


class Shards:
    """The measurements of one evaluation in a folder.

    Args:
        folder: made if it is not there.
        settings: everything that decides the numbers, as plain values.
        total: samples.
        size: samples per shard.
        process_index, process_count: which shards are this process's.

    Raises:
        WorkdirError: the folder holds measurements that were made with other settings.
    """

    def __init__(
        self,
        folder: str | Path,
        settings: Mapping[str, Any],
        *,
        total: int,
        size: int,
        process_index: int = 0,
        process_count: int = 1,
    ):
        if total < 1 or size < 1:
            raise ValueError(f"{total} samples in shards of {size}: expected at least 1")
        self.folder, self.total, self.size = Path(folder), total, size
        self._index, self._count = process_index, process_count
        record = json.loads(json.dumps({**settings, "samples": total, "samples_per_shard": size}))
        self._require_same(record)

    def __len__(self) -> int:
        """Shards of all processes."""
        return -(-self.total // self.size)

    def samples(self, shard: int) -> range:
        """Ranks of the samples of a shard."""
        return range(shard * self.size, min((shard + 1) * self.size, self.total))

    def missing(self) -> list[int]:
        """Shards of this process that are not measured yet."""
        return [shard for shard in range(self._index, len(self), self._count) if not self._path(shard).is_file()]

    def all_there(self) -> bool:
        """The shards of every process are measured."""
        return all(self._path(shard).is_file() for shard in range(len(self)))

    def write(self, shard: int, arrays: Arrays) -> None:
        """Keep what was measured of a shard."""
        with replacing(self._path(shard)) as file:
            np.savez(file, **dict(arrays))  # type: ignore[arg-type]

    def read(self, shard: int, *names: str) -> dict[str, np.ndarray]:
        """Named arrays of a shard, or all of them.

        Raises:
            WorkdirError: the file is damaged; it says which one to delete.
        """
        path = self._path(shard)
        try:
            with np.load(path, allow_pickle=False) as data:
                return {name: data[name] for name in names or data.files}
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise WorkdirError(f"{path} is damaged ({error}): delete it and run the same command again") from error

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """The measurements of all shards in order, one shard in memory at a time."""
        for shard in range(len(self)):
            yield self.read(shard)

    def column(self, name: str) -> np.ndarray:
        """One number per sample, of all samples in order."""
        return np.concatenate([self.read(shard, name)[name] for shard in range(len(self))])

    def _path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.npz"

    def _require_same(self, record: dict[str, Any]) -> None:
        path = self.folder / _RECORD
        if path.is_file():
            found = json.loads(path.read_text())
            changed = sorted(key for key in {*found, *record} if found.get(key) != record.get(key))
            if changed:
                key = changed[0]
                raise WorkdirError(
                    f"{self.folder} holds measurements made with other settings ({', '.join(changed)}; {key} was "
                    f"{found.get(key)}, is {record.get(key)}): use another --output, or delete the folder"
                )
            return
        with replacing(path) as file:
            file.write(json.dumps(record, indent=1).encode())
