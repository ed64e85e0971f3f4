"""The folder of a data set of tokens: what lies in it, and the JSON that says so.

    FOLDER/tokens.json                what all shards share (`voken_common.data.tokens.format.TokenInfo`)
    FOLDER/shard-00000.array_record   samples 0 to samples_per_shard - 1 of the source, in order
    FOLDER/shard-00000.json           written last: a shard is finished when it is there (`ShardInfo`)

What lies in a shard follows from its number alone, so neither interruptions nor the number of processes change it.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from pydantic import ValidationError

from voken_common.atomic_write import replacing
from voken_common.config.differences import differences
from voken_common.data.errors import DataError
from voken_common.data.tokens.format import ShardInfo, TokenInfo
from voken_common.untrusted.files import read_text

logger = logging.getLogger("voken.data")

INFO_FILE = "tokens.json"


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
        write_json(folder / INFO_FILE, info)
        return
    there = read_info(folder)
    # Fingerprints of earlier versions do not tell precisions apart.
    before, now = (about.identity() | {"precision": about.tokenizer.precision} for about in (there, info))
    if "class_names" not in before:
        now.pop("class_names", None)
    differing = differences(before, now)
    if not differing:
        return
    if not any(folder.glob("shard-*")):
        # A command that failed before its first shard has left nothing that could be mixed with this one's.
        logger.info("%s held no shard yet: begun anew (%s)", folder, "; ".join(differing))
        write_json(folder / INFO_FILE, info)
        return
    raise DataError(
        "\n".join(
            [
                f"{folder} holds tokens of another run; choose another folder, repeat its command, or remove them with "
                "--overwrite:",
                *(f"  {line}" for line in differing),
            ]
        )
    )


def overwrite(folder: str | Path) -> list[str]:
    """Remove the data set that a folder holds, and nothing else in it; returns the names of what was removed."""
    folder = Path(folder)
    found = sorted(folder.glob("shard-*.json")) + sorted(folder.glob("shard-*.array_record*"))
    # The information goes first: without it nobody takes what is left for a data set.
    files = [path for path in (folder / INFO_FILE, *found) if path.is_file()]
    for path in files:
        path.unlink()
    return [path.name for path in files]


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
        require_same_tokenizer(folder, number, shard, info)
    complete = info.model_copy(
        update={
            "complete": True,
            "records": sum(shard.records for shard in shards),
            "classes": max(shard.largest_label for shard in shards) + 1,
            "bad": sum(len(shard.bad) for shard in shards),
            "sizes": tuple(shard.records for shard in shards),
        }
    )
    write_json(folder / INFO_FILE, complete)
    return complete


def read_info(folder: Path) -> TokenInfo:
    """Read the description of a folder.

    Raises:
        DataError: no token shards there, or a damaged or newer `tokens.json`.
    """
    file = folder / INFO_FILE
    try:
        text = read_text(file)
    except (FileNotFoundError, NotADirectoryError):
        names = sorted(path.name for path in folder.glob("*"))[:5] if folder.is_dir() else ["no such folder"]
        raise DataError(
            f"no token shards in {folder} (found: {', '.join(names) or 'an empty folder'}); expected {INFO_FILE} and "
            "shard-*.array_record, as `python -m voken_jax.encode` writes them"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    try:
        return TokenInfo.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(
            f"{file} is damaged, or of another version of voken ({where + ': ' if where else ''}{first['msg']})"
        ) from error


def read_shard(folder: Path, number: int) -> ShardInfo | None:
    """Read the description of a shard; None unless it is finished and its file has the size it states."""
    file, summary = shard_files(folder, number)
    try:
        shard = ShardInfo.model_validate_json(read_text(summary))
        return shard if file.stat().st_size == shard.size else None
    except (OSError, ValueError):
        return None


def require_complete(folder: Path, info: TokenInfo) -> None:
    """Raise DataError while shards are missing."""
    if info.complete:
        return
    done = sum(read_shard(folder, number) is not None for number in range(info.shards))
    raise DataError(
        f"the tokens in {folder} are unfinished: {done} of {info.shards} shards; run the same encode command again, "
        "it continues"
    )


def require_shard(folder: Path, number: int, records: int, info: TokenInfo) -> None:
    """Raise DataError unless a shard of a complete data set is there, of its tokenizer and with so many records."""
    shard = read_shard(folder, number)
    file, summary = shard_files(folder, number)
    if shard is None:
        size = f"{file.stat().st_size} bytes" if file.is_file() else "no file"
        raise DataError(
            f"{file} is missing or incomplete ({size}; {summary.name} says what it should be): run the encode command "
            "again, it writes what is missing"
        )
    require_same_tokenizer(folder, number, shard, info)
    if shard.records != records:
        raise DataError(f"{file} has {shard.records} records, {INFO_FILE} says {records}: it is of another data set")


def require_same_tokenizer(folder: Path, number: int, shard: ShardInfo, info: TokenInfo) -> None:
    """Raise DataError at a shard of another tokenizer than the data set."""
    if shard.fingerprint != info.tokenizer.fingerprint:
        raise DataError(
            f"{folder} mixes shards of different tokenizers: {shard_files(folder, number)[0].name} is of tokenizer "
            f"{shard.fingerprint[:12]}, {INFO_FILE} of {info.tokenizer.fingerprint[:12]} ({info.tokenizer.name}). "
            "Encode each into a folder of its own"
        )


def write_json(path: Path, value: TokenInfo | ShardInfo) -> None:
    """Write what a data set or a shard says about itself; it appears whole."""
    with replacing(path) as file:
        file.write(json.dumps(value.model_dump(mode="json"), indent=1).encode())
