"""Token shards: array_record files of tokens, labels and keys, with random access, and the JSON beside them.

    FOLDER/tokens.json                what all shards share (`voken_common.tokens.TokenInfo`)
    FOLDER/shard-00000.array_record   samples 0 to samples_per_shard - 1 of the source, in order
    FOLDER/shard-00000.json           written last: a shard is finished when it is there (`ShardInfo`)

What lies in a shard follows from its number alone, so neither interruptions nor the number of processes change it.
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
from jaxtyping import Int
from pydantic import ValidationError

from voken_common.data.array_records import array_record_module, system_error
from voken_common.data.errors import DataError, ReadError
from voken_common.data.retry import DEFAULT_SECONDS, Patience
from voken_common.data.sources import spread_evenly
from voken_common.files import replacing
from voken_common.tokens import Record, ShardInfo, TokenInfo, decode_record, encode_record

INFO_FILE = "tokens.json"
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

    def __enter__(self) -> TokenShardWriter:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        for abandoned in self._file.parent.glob(f"{self._file.stem}.*.part"):
            abandoned.unlink(missing_ok=True)
        self._partial = self._file.with_name(f"{self._file.name}.{uuid.uuid4().hex}.part")
        self._writer = array_record_module().ArrayRecordWriter(str(self._partial), _WRITER_OPTIONS)
        return self

    def add(self, record: Record) -> None:
        """Append a sample."""
        self._writer.write(encode_record(record, self._info.vocabularies))
        self._records += 1
        self._largest_label = max(self._largest_label, record.label)

    def leave_out(self, sample: int, reason: str) -> None:
        """Note a sample that could not be decoded."""
        self._bad.append((sample, reason))

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
        )
        _write_json(self._summary, summary)


class TokenShardSource:
    """The samples of a finished folder, by random access; cheap to send to worker processes.

    Args:
        path: the folder.
        retry_seconds: how long a read that fails for a reason that may pass is tried again.

    Raises:
        DataError: no shards there, unfinished, incomplete or of several tokenizers.
    """

    def __init__(self, path: str | Path, retry_seconds: float = DEFAULT_SECONDS):
        self.path = Path(path).expanduser()
        self._patience = Patience(retry_seconds)
        self.info = read_info(self.path)
        _require_complete(self.path, self.info)
        self._ends = np.cumsum(self.info.sizes)
        for number, records in enumerate(self.info.sizes):
            _require_shard(self.path, number, records, self.info)
        self._open()

    def __len__(self) -> int:
        return self.info.records

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Tokens int32 (T, S), label, key and number of the crop."""
        record = self._read(index)
        return {"tokens": record.tokens, "label": record.label, "key": record.key, "crop": record.crop}

    def batch(self, indices: Sequence[int] | Int[np.ndarray, " B"]) -> dict[str, np.ndarray]:
        """Tokens int32 (B, T, S) and labels int32 (B,) of several samples."""
        records = [self._read(int(index)) for index in indices]
        return {
            "tokens": np.stack([record.tokens for record in records]),
            "labels": np.array([record.label for record in records], np.int32),
        }

    def evaluation_index(self, rank: int) -> int:
        """Sample at place `rank` of an order of which every beginning is representative."""
        return spread_evenly(rank, len(self))

    def order_fingerprint(self) -> int:
        """Of what the numbers of samples mean: which tokens of which samples, cut into which shards."""
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
        # array_record raises whatever its library says for damaged blocks, and gives nothing for some.
        except (ValueError, RuntimeError, IndexError, OSError) as error:
            raise DataError(
                f"{file}, record {position}: damaged ({error}). Remove that file and run the encode command again: it "
                "writes what is missing"
            ) from error

    def _records(self, shard: int, file: Path, position: int) -> list[bytes]:
        reader = self._reader(shard, file)
        try:
            records: list[bytes] = reader.read([position])
            return records
        except Exception as error:
            failed = system_error(error)
            if failed is None:
                raise
            with self._lock:
                self._readers.pop(shard, None)
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


def samples_of(number: int, info: TokenInfo) -> range:
    """Numbers of the source's samples that a shard is for."""
    first = number * info.samples_per_shard
    return range(first, min(first + info.samples_per_shard, info.samples))


def shard_files(folder: Path, number: int) -> tuple[Path, Path]:
    """Records and summary of a shard."""
    return folder / f"shard-{number:05d}.array_record", folder / f"shard-{number:05d}.json"


def start(folder: str | Path, info: TokenInfo) -> None:
    """Begin a data set, or make sure that the one begun there is this one.

    Raises:
        DataError: the folder holds other tokens; the message says in what they differ.
    """
    folder = Path(folder)
    if not (folder / INFO_FILE).is_file():
        if found := sorted(path.name for path in folder.glob("shard-*")):
            raise DataError(f"{folder} holds {found[0]} but no {INFO_FILE}: remove what is there, or choose another")
        _write_json(folder / INFO_FILE, info)
        return
    before, now = read_info(folder).identity(), info.identity()
    differing = [f"  {key}: found {before.get(key)}, this run has {now[key]}" for key in now if before[key] != now[key]]
    if differing:
        raise DataError(
            "\n".join(
                [f"{folder} holds tokens of another run; choose another folder or repeat its command:", *differing]
            )
        )


def finish(folder: str | Path, info: TokenInfo) -> TokenInfo | None:
    """Mark the data set as complete if every shard is finished; whoever finishes last does it, twice does no harm.

    Returns:
        what `tokens.json` says now, or None while shards are missing.

    Raises:
        DataError: a shard of another tokenizer.
    """
    folder = Path(folder)
    found = [read_shard(folder, number) for number in range(info.shards)]
    shards = [shard for shard in found if shard is not None]
    if len(shards) < info.shards:
        return None
    for number, shard in enumerate(shards):
        _require_same_tokenizer(folder, number, shard, info)
    complete = info.model_copy(
        update={
            "complete": True,
            "records": sum(shard.records for shard in shards),
            "classes": max(shard.largest_label for shard in shards) + 1,
            "bad": sum(len(shard.bad) for shard in shards),
            "sizes": tuple(shard.records for shard in shards),
        }
    )
    _write_json(folder / INFO_FILE, complete)
    return complete


def read_info(folder: Path) -> TokenInfo:
    """What a folder says about itself.

    Raises:
        DataError: no token shards there, or a damaged or newer `tokens.json`.
    """
    file = folder / INFO_FILE
    try:
        text = file.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        names = sorted(path.name for path in folder.glob("*"))[:5] if folder.is_dir() else ["no such folder"]
        raise DataError(
            f"no token shards in {folder} (found: {', '.join(names) or 'an empty folder'}); expected {INFO_FILE} and "
            "shard-*.array_record, as `python -m voken_jax.encode` writes them"
        ) from None
    try:
        return TokenInfo.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(
            f"{file} is damaged, or of another version of voken ({where + ': ' if where else ''}{first['msg']})"
        ) from error


def read_shard(folder: Path, number: int) -> ShardInfo | None:
    """What a shard says about itself; None unless it is finished and its file is as large as it says."""
    file, summary = shard_files(folder, number)
    try:
        shard = ShardInfo.model_validate_json(summary.read_text(encoding="utf-8"))
        return shard if file.stat().st_size == shard.size else None
    except (OSError, ValidationError):
        return None


def _require_complete(folder: Path, info: TokenInfo) -> None:
    if info.complete:
        return
    done = sum(read_shard(folder, number) is not None for number in range(info.shards))
    raise DataError(
        f"the tokens in {folder} are unfinished: {done} of {info.shards} shards; run the same encode command again, "
        "it continues"
    )


def _require_shard(folder: Path, number: int, records: int, info: TokenInfo) -> None:
    shard = read_shard(folder, number)
    file, summary = shard_files(folder, number)
    if shard is None:
        size = f"{file.stat().st_size} bytes" if file.is_file() else "no file"
        raise DataError(
            f"{file} is missing or incomplete ({size}; {summary.name} says what it should be): run the encode command "
            "again, it writes what is missing"
        )
    _require_same_tokenizer(folder, number, shard, info)
    if shard.records != records:
        raise DataError(f"{file} has {shard.records} records, {INFO_FILE} says {records}: it is of another data set")


def _require_same_tokenizer(folder: Path, number: int, shard: ShardInfo, info: TokenInfo) -> None:
    if shard.fingerprint != info.tokenizer.fingerprint:
        raise DataError(
            f"{folder} mixes shards of different tokenizers: {shard_files(folder, number)[0].name} is of tokenizer "
            f"{shard.fingerprint[:12]}, {INFO_FILE} of {info.tokenizer.fingerprint[:12]} ({info.tokenizer.name}). "
            "Encode each into a folder of its own"
        )


def _write_json(path: Path, value: TokenInfo | ShardInfo) -> None:
    with replacing(path) as file:
        file.write(json.dumps(value.model_dump(mode="json"), indent=1).encode())
