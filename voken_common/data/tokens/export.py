"""Token shards in the formats of other programs: Parquet for Hugging Face datasets, flat binary for language models.

Shape letters: T = tokens of a sample, row-major, S = sub-tokens of a position.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int32
from tqdm import tqdm

from voken_common.atomic_write import replacing
from voken_common.data.errors import DataError
from voken_common.data.tokens.shards import TokenShardSource
from voken_common.errors import UnavailableError

ROWS = 1024
"""Samples of a row group of Parquet, and of a block that is written at once."""


def write_parquet(source: TokenShardSource, target: str | Path) -> int:
    """Write all samples as one Parquet file, which `datasets.load_dataset("parquet", data_files=...)` reads.

    Columns: `tokens` (list of T int32 for one sub-token, else T lists of S), `label` (int32), `class` (its name or
    null), `key`, `crop` (int32). The file's metadata hold `voken`, a JSON of the grid, vocabularies and tokenizer.

    Args:
        source: the shards.
        target: the file to write; it appears complete or not at all.

    Returns:
        The number of samples.

    Raises:
        UnavailableError: pyarrow is not installed.
    """
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise UnavailableError("Parquet needs the package pyarrow: pip install 'voken[tokens]'") from error

    single = len(source.info.vocabularies) == 1
    row = arrow.list_(arrow.int32()) if single else arrow.list_(arrow.list_(arrow.int32()))
    fields = [("tokens", row), ("label", arrow.int32()), ("class", arrow.string()), ("key", arrow.string())]
    schema = arrow.schema([*fields, ("crop", arrow.int32())], metadata={"voken": json.dumps(_about(source))})
    with replacing(target) as file, parquet.ParquetWriter(file, schema) as writer:
        for block in _blocks(source):
            samples = [source[index] for index in block]
            tokens = [sample["tokens"][:, 0] if single else sample["tokens"] for sample in samples]
            columns = {
                "tokens": [list(values) if single else values.tolist() for values in tokens],
                "label": [sample["label"] for sample in samples],
                "class": [_class_name(source, sample["label"]) for sample in samples],
                "key": [sample["key"] for sample in samples],
                "crop": [sample["crop"] for sample in samples],
            }
            writer.write_table(arrow.table(columns, schema=schema))
    return len(source)


def write_flat(source: TokenShardSource, target: str | Path) -> int:
    """Write all samples as one flat array of numbers, as language-model code maps it into memory.

    A sample is the number of its class and then its T * S tokens; each vocabulary has its own range of numbers, in the
    order of the sub-tokens, and the classes come last. So a sequence model needs one embedding table of
    `vocabulary_size` rows. `TARGET.json` beside it says so: dtype (uint16, or uint32 where that is too small),
    `sequence_length`, `samples`, `vocabulary_size`, the first number of each range, and the tokenizer.

    Args:
        source: the shards; every sample has a label.
        target: the file to write; it appears complete or not at all.

    Returns:
        The number of samples.

    Raises:
        DataError: a sample without a label.
    """
    target = Path(target)
    about = _about(source)
    starts = np.concatenate([[0], np.cumsum(source.info.vocabularies)])
    size = int(starts[-1]) + source.label_count
    dtype = np.dtype("<u2" if size <= 2**16 else "<u4")
    length = 1 + source.info.tokens * len(source.info.vocabularies)
    with replacing(target) as file:
        for block in _blocks(source):
            batch = source.batch(block)
            if (batch["labels"] < 0).any():
                raise DataError(f"{source.path} has samples without a label: a flat file begins each sample with one")
            file.write(_sequences(batch["tokens"], batch["labels"], starts).astype(dtype).tobytes())
    about |= {
        "dtype": "uint16" if dtype.itemsize == 2 else "uint32",
        "samples": len(source),
        "sequence_length": length,
        "vocabulary_size": size,
        "sub_token_starts": [int(start) for start in starts[:-1]],
        "class_start": int(starts[-1]),
    }
    with replacing(target.with_name(target.name + ".json")) as file:
        file.write((json.dumps(about, indent=2) + "\n").encode())
    return len(source)


def _sequences(tokens: Int32[np.ndarray, "B T S"], labels: Int32[np.ndarray, " B"], starts: np.ndarray) -> np.ndarray:
    flat = (tokens.astype(np.int64) + starts[:-1]).reshape(len(tokens), -1)
    return np.concatenate([labels[:, None].astype(np.int64) + starts[-1], flat], axis=1)


def _about(source: TokenShardSource) -> dict[str, object]:
    info = source.info
    return {
        "grid": list(info.grid),
        "vocabularies": list(info.vocabularies),
        "classes": list(source.classes),
        "tokenizer": {"name": info.tokenizer.name, "fingerprint": info.tokenizer.fingerprint},
    }


def _class_name(source: TokenShardSource, label: int) -> str | None:
    return source.classes[label] if 0 <= label < len(source.classes) else None


def _blocks(source: TokenShardSource) -> Iterator[range]:
    with tqdm(total=len(source), unit="sample", desc="samples") as bar:
        for begin in range(0, len(source), ROWS):
            block = range(begin, min(begin + ROWS, len(source)))
            yield block
            bar.update(len(block))
