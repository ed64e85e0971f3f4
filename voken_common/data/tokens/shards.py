"""Token shards: array_record files of tokens, labels and keys, with random access.

How their folder is made up is in `voken_common.data.tokens.folder`.
"""

from __future__ import annotations

import json
import os
import threading
import uuid
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import Int, Int32

from voken_common.atomic_write import is_partial
from voken_common.config.schema.data import RETRY_SECONDS
from voken_common.data.errors import DataError, ReadError
from voken_common.data.labels import numbers_in, warn_unnamed
from voken_common.data.sources.base import spread_evenly
from voken_common.data.storage.array_records import array_record_module, system_error
from voken_common.data.storage.files import folder_expected
from voken_common.data.storage.retry import Patience, reason
from voken_common.data.tokens.folder import (
    finish,
    read_info,
    read_shard,
    require_complete,
    require_shard,
    samples_of,
    shard_files,
    start,
    write_json,
)
from voken_common.data.tokens.format import Record, ShardInfo, TokenInfo, as_text, decode_record, encode_record

_WRITER_OPTIONS = "group_size:1,uncompressed"
_READER_OPTIONS = {"options": "readahead_buffer_size:0", "file_reader_buffer_size": 32768}


class TokenShardWriter:
    """Writes one shard; a context manager. The file appears whole, when the block ends without an error.

    Args:
        folder: of the data set; `info` is not written here, see `start` and `finish`.
        number: of the shard.
        info: of the data set.
    """

    def __init__(self, folder: str | Path, number: int, info: TokenInfo):
        self._file, self._summary = shard_files(Path(folder), number)
        self._info = info
        self._records, self._largest_label = 0, -1
        self._bad: list[tuple[int, str]] = []
        self._clips: list[tuple[float, ...]] = []

    def __enter__(self) -> TokenShardWriter:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        for abandoned in self._file.parent.glob(f"{self._file.stem}.*.part"):
            if is_partial(abandoned.name):
                abandoned.unlink(missing_ok=True)
        self._partial = self._file.with_name(f"{self._file.name}.{uuid.uuid4().hex}.part")
        self._writer = array_record_module().ArrayRecordWriter(str(self._partial), _WRITER_OPTIONS)
        return self

    def add(self, record: Record, times: tuple[float, ...] | None = None) -> None:
        """Append a sample; of a window of a video with the times of its frames in seconds."""
        self._writer.write(encode_record(record, self._info.vocabularies))
        self._records += 1
        if times is not None:
            self._clips.append(times)
        self._largest_label = max(self._largest_label, record.label)

    def leave_out(self, sample: int, reason: str) -> None:
        """Note a sample that could not be decoded."""
        self._bad.append((sample, as_text(reason)))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._writer.close()
            if kind is None:
                self._publish()
        finally:
            self._partial.unlink(missing_ok=True)

    def _publish(self) -> None:
        reader = array_record_module().ArrayRecordReader(str(self._partial), **_READER_OPTIONS)
        written = reader.num_records()
        reader.close()
        if written != self._records:
            raise OSError(f"{self._file}: {written} of {self._records} records arrived; is the disk full?")
        descriptor = os.open(self._partial, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        # A shard that is written anew must not be taken for finished in between.
        self._summary.unlink(missing_ok=True)
        os.replace(self._partial, self._file)
        summary = ShardInfo(
            records=self._records,
            size=self._file.stat().st_size,
            largest_label=self._largest_label,
            fingerprint=self._info.tokenizer.fingerprint,
            bad=tuple(self._bad),
            clips=tuple(self._clips),
        )
        write_json(self._summary, summary)


class TokenShardSource:
    """The samples of a finished folder, by random access; cheap to send to worker processes.

    Args:
        path: the folder.
        retry_seconds: how long a read that fails for a reason that may pass is tried again.

    Raises:
        DataError: no shards there, unfinished, incomplete or of several tokenizers.
    """

    def __init__(self, path: str | Path, retry_seconds: float = RETRY_SECONDS):
        self.path = Path(path).expanduser()
        self._patience = Patience(retry_seconds)
        self.info = read_info(self.path)
        require_complete(self.path, self.info)
        self.classes = self.info.class_names
        self._numbers: Int32[np.ndarray, " k"] | None = None
        self._ends = np.cumsum(self.info.sizes)
        self._shard: tuple[int, ShardInfo] | None = None
        for number, records in enumerate(self.info.sizes):
            require_shard(self.path, number, records, self.info)
        self._open()

    def __len__(self) -> int:
        return self.info.records

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Tokens int32 (T, S), label, key and number of the crop."""
        record = self._numbered(index)
        return {"tokens": record.tokens, "label": record.label, "key": record.key, "crop": record.crop}

    def times(self, index: int) -> tuple[float, ...]:
        """Times of the frames of a video's window, in seconds.

        Raises:
            DataError: the samples are no windows of videos.
        """
        number = int(np.searchsorted(self._ends, index, side="right"))
        shard = read_shard(self.path, number) if self._shard is None or self._shard[0] != number else self._shard[1]
        if shard is None or len(shard.clips) != shard.records:
            raise DataError(f"{self.path} holds tokens of images, not of videos")
        self._shard = (number, shard)
        return shard.clips[index - (int(self._ends[number - 1]) if number else 0)]

    def batch(self, indices: Sequence[int] | Int[np.ndarray, " B"]) -> dict[str, np.ndarray]:
        """Tokens int32 (B, T, S) and labels int32 (B,) of several samples."""
        records = [self._numbered(int(index)) for index in indices]
        return {
            "tokens": np.stack([record.tokens for record in records]),
            "labels": np.array([record.label for record in records], np.int32),
        }

    def adopt_classes(self, names: tuple[str, ...], reference: str) -> None:
        """Number the classes as other data does, by their names; without names on both sides nothing changes.

        Args:
            names: of the other data's classes, by number.
            reference: what messages call it.

        Raises:
            DataError: classes that the other data has not.
        """
        if bool(self.classes) != bool(names) and self.info.classes > 1:
            warn_unnamed(str(self.path), reference)
        if not self.classes or not names or self.classes == names:
            return
        used = range(min(self.info.classes, len(self.classes)))
        numbers = numbers_in(names, self.classes, used, where=str(self.path), reference_where=reference)
        self._numbers = numbers if self._numbers is None else numbers[self._numbers]
        self.classes = names

    @property
    def label_count(self) -> int:
        """Labels, as they are numbered now, are below this."""
        if self._numbers is None:
            return self.info.classes
        return int(self._numbers[: self.info.classes].max(initial=-1)) + 1

    def _numbered(self, index: int) -> Record:
        record = self._read(index)
        return record if self._numbers is None else record._replace(label=int(self._numbers[record.label]))

    def evaluation_index(self, rank: int) -> int:
        """Return the sample at `rank` of an order of which every beginning is representative."""
        return spread_evenly(rank, len(self))

    def order_fingerprint(self) -> int:
        """Fingerprint of the numbering of samples: their tokens, their keys and the cut into shards."""
        meaning = [self.info.identity(), self.info.sizes]
        return zlib.crc32(json.dumps(meaning, sort_keys=True).encode())

    def describe(self) -> str:
        """One line for the log."""
        info = self.info
        grid, codes = " x ".join(map(str, info.grid)), " x ".join(map(str, info.vocabularies))
        return (
            f"token shards {self.path}: {len(self)} samples of {grid} tokens of {codes} codes by "
            f"{info.tokenizer.name}, {info.classes} classes"
        )

    def _read(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        position = index - (int(self._ends[shard - 1]) if shard else 0)
        file, _ = shard_files(self.path, shard)
        try:
            (data,) = self._patience.read(
                lambda: self._records(shard, file, position), lambda: f"{file}, record {position}"
            )
            return decode_record(data, self.info.vocabularies, self.info.tokens)
        except ReadError:
            raise
        except OSError as error:
            # What Patience passes on says nothing of what is in the file.
            raise DataError(
                f"{file}, record {position}: cannot be read: {reason(error)}. See that the folder is there and may be "
                "read, then run the same command again; it continues from what it has saved last"
            ) from error
        # array_record raises whatever its library says for damaged blocks, and gives nothing for some.
        except (ValueError, RuntimeError, IndexError) as error:
            raise DataError(
                f"{file}, record {position}: damaged ({error}). Remove that file and run the encode command again: it "
                "writes what is missing"
            ) from error

    def _records(self, shard: int, file: Path, position: int) -> list[bytes]:
        try:
            records: list[bytes] = self._reader(shard, file).read([position])
            return records
        except Exception as error:
            failed = system_error(error)
            if failed is None:
                raise
            with self._lock:
                self._readers.pop(shard, None)
            with folder_expected(str(self.path)):
                raise failed from error

    def _reader(self, shard: int, file: Path) -> Any:
        with self._lock:
            if shard not in self._readers:
                self._readers[shard] = array_record_module().ArrayRecordReader(str(file), **_READER_OPTIONS)
            return self._readers[shard]

    def _open(self) -> None:
        self._readers: dict[int, Any] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_readers", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


def write_token_shards(folder: str | Path, info: TokenInfo, records: Iterable[Record]) -> TokenInfo:
    """Write a whole data set that is at hand; `info.samples` says how many records there are.

    Raises:
        DataError: the folder holds other tokens.
        ValueError: fewer or more records, or such that do not fit `info`.
    """
    start(folder, info)
    remaining = iter(records)
    for number in range(info.shards):
        with TokenShardWriter(folder, number, info) as writer:
            for index in samples_of(number, info):
                record = next(remaining, None)
                if record is None:
                    raise ValueError(f"{index} records, expected {info.samples}")
                writer.add(record)
    if next(remaining, None) is not None:
        raise ValueError(f"more than {info.samples} records")
    finished = finish(folder, info)
    assert finished is not None
    return finished
