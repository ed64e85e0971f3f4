"""Token data sets: what a folder of shards says about itself, and the bytes of one record. No array_record, no Grain.

A folder holds `tokens.json` (a `TokenInfo`) and shards; see `voken_common.data.tokens.folder`, and for reading and
writing them `voken_common.data.tokens.shards`.

Shape letters: h w = tokens along the sides, T = h * w, row-major, S = sub-tokens of a position (2 where ids are
factorized, else 1).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self

import numpy as np
from jaxtyping import Int, Int32
from pydantic import BaseModel, ConfigDict, Field, model_validator

from voken_common.config.schema.bounds import Codes, NonNegativeInt, PositiveInt, Side
from voken_common.data.errors import DataError

if TYPE_CHECKING:
    from voken_common.config.schema.tokenizer import Config
    from voken_common.config.schema.transformer import TransformerConfig

MOST_SHARDS = 1_000_000
"""Of a data set: each is a file, that is looked for one by one."""
_HEADER = struct.Struct("<IiHH")
_CHECKSUM = struct.Struct("<I")
_LATER = frozenset({"norm_groups", "adaptive_norm"})
BitOrder = Literal["lsb_first", "msb_first"]
"""Worth of a code's first channel in its id; see `bit_order` of LFQ's configuration."""
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TokenizerInfo(_Section):
    """The tokenizer that made the tokens."""

    name: str
    reference: str
    """Its checkpoint, as the encode command was given it."""
    fingerprint: Digest
    """See `fingerprint`."""
    config: dict[str, Any]
    """Its whole configuration."""

    @property
    def precision(self) -> str:
        """Precision of the encoder; another one rounds some ids to other codes."""
        return str(self.config.get("precision", {}).get("compute_dtype", "float32"))

    @property
    def bit_order(self) -> BitOrder:
        """The order of the bits of its ids, as `bit_order_of` says it."""
        order = self.config.get("quantizer", {}).get("bit_order")
        return "msb_first" if order == "msb_first" else "lsb_first"


class ShardInfo(_Section):
    """One finished shard."""

    records: NonNegativeInt
    size: NonNegativeInt
    """Bytes of the file."""
    largest_label: Annotated[int, Field(ge=-1)]
    """-1 in a shard without records."""
    fingerprint: Digest
    """Of the tokenizer."""
    bad: tuple[tuple[int, str], ...] = ()
    """Samples that could not be decoded: number of the sample in the source's order, and the reason."""
    clips: tuple[tuple[float, ...], ...] = ()
    """Of windows of videos, for each record: the times of its frames in seconds after the first frame of the video.

    Where they are fewer than a window has, the rest of the window repeats the last frame.
    """


class TokenInfo(_Section):
    """The contents of `tokens.json`."""

    format: Literal["voken tokens"] = "voken tokens"
    layout: Literal[1] = 1
    grid: tuple[Side, ...] = Field(min_length=2, max_length=3)
    """Rows and columns of tokens; of videos latent frames before them."""
    vocabularies: tuple[Codes, ...] = Field(min_length=1, max_length=2)
    """Codes per sub-token, in the order in which a generator predicts them."""
    tokenizer: TokenizerInfo
    source: dict[str, Any]
    """What was encoded, and how its images were cut."""
    samples: PositiveInt
    """Images times crops, the undecodable ones included."""
    samples_per_shard: PositiveInt
    complete: bool = False
    records: NonNegativeInt = 0
    """All of them; 0 until complete."""
    class_names: tuple[str, ...] = ()
    """Names of the classes by label; empty where the source names none, and in folders of earlier versions."""
    classes: NonNegativeInt = 0
    """Labels are below this; 0 until complete."""
    bad: NonNegativeInt = 0
    """Samples left out because they could not be decoded."""
    sizes: tuple[NonNegativeInt, ...] = ()
    """Records of every shard; empty until complete."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.shards > MOST_SHARDS:
            raise ValueError(
                f"{self.samples} samples in shards of {self.samples_per_shard} are {self.shards} shards; expected at "
                f"most {MOST_SHARDS}: put more samples into each"
            )
        if self.complete and len(self.sizes) != self.shards:
            raise ValueError(f"{len(self.sizes)} sizes of {self.shards} shards")
        return self

    @property
    def tokens(self) -> int:
        """T."""
        return math.prod(self.grid)

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.samples // self.samples_per_shard)

    def identity(self) -> dict[str, Any]:
        """All that has to be the same for a run to go on in this folder; where the checkpoint lies is not."""
        values = self.model_dump(mode="json", exclude={"complete", "records", "classes", "bad", "sizes"})
        values["tokenizer"] = self.tokenizer.fingerprint
        if not self.class_names:
            # Folders of versions that did not keep the names stay the same data sets.
            del values["class_names"]
        return values

    def require_fits(self, model: TransformerConfig, path: str, labels: int | None = None) -> None:
        """Raise DataError unless a generator of this configuration can be trained on these tokens.

        Args:
            model: the `model` section of a generator's configuration.
            path: of the folder, for the message.
            labels: the labels are below this, where they are numbered anew; None: as they are in the shards.
        """
        labels = self.classes if labels is None else labels
        pairs = (
            ("vocabularies", self.vocabularies, model.vocabularies),
            ("grid", self.grid, (model.grid, model.grid)),
        )
        for field, found, expected in pairs:
            if found != expected:
                raise DataError(
                    f"{path} holds tokens with {field} {list(found)}, model.{field} expects {list(expected)}: encode "
                    f"with another tokenizer, image size or --sub-tokens, or change model.{field}"
                )
        if labels > model.classes:
            raise DataError(
                f"{path} has labels up to {labels - 1}, model.classes {model.classes} expects less: set "
                f"model.classes to {labels} at least"
            )


class Record(NamedTuple):
    """One sample: ids (T, S), class, source key, and number of the crop of that source sample."""

    tokens: Int[np.ndarray, "T S"]
    label: int
    key: str
    crop: int = 0


def as_text(value: Any) -> Any:
    """Plain values that JSON can hold and give back: bytes in names of files that are no UTF-8 are written out."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    if isinstance(value, Mapping):
        return {key: as_text(below) for key, below in value.items()}
    return [as_text(below) for below in value] if isinstance(value, list) else value


def sub_token_type(vocabulary: int) -> np.dtype[Any]:
    """The smallest unsigned little-endian type of a sub-token's ids."""
    return np.dtype("u1" if vocabulary <= 2**8 else "<u2" if vocabulary <= 2**16 else "<u4")


def encode_record(record: Record, vocabularies: Sequence[int]) -> bytes:
    """The bytes of a record: checksum, label, crop, key, then the ids of each sub-token in its smallest type.

    Raises:
        ValueError: ids outside the vocabularies, or a shape that is not (T, S).
    """
    tokens = np.asarray(record.tokens)
    if tokens.ndim != 2 or tokens.shape[1] != len(vocabularies):
        raise ValueError(f"{record.key}: ids have shape {tokens.shape}, expected (T, {len(vocabularies)})")
    if tokens.dtype.kind not in "iu":
        raise ValueError(f"{record.key}: ids are {tokens.dtype}, expected integers")
    limits = np.asarray(vocabularies)
    if tokens.size and (tokens.min() < 0 or (tokens >= limits).any()):
        raise ValueError(
            f"{record.key}: ids run from {tokens.min(0).tolist()} to {tokens.max(0).tolist()}, expected less than "
            f"{list(vocabularies)}"
        )
    key = os.fsencode(record.key)
    ids = b"".join(column.astype(sub_token_type(v)).tobytes() for column, v in zip(tokens.T, vocabularies, strict=True))
    body = _HEADER.pack(0, record.label, record.crop, len(key))[_CHECKSUM.size :] + key + ids
    return _CHECKSUM.pack(zlib.crc32(body)) + body


def decode_record(data: bytes, vocabularies: Sequence[int], tokens: int) -> Record:
    """Inverse of `encode_record`; `tokens` is T. The ids are int32.

    Raises:
        ValueError: these are not the bytes of such a record.
    """
    types = [sub_token_type(vocabulary) for vocabulary in vocabularies]
    needed = tokens * sum(kind.itemsize for kind in types)
    if len(data) < _HEADER.size + needed:
        raise ValueError(f"{len(data)} bytes, expected at least {_HEADER.size + needed}")
    checksum, label, crop, length = _HEADER.unpack_from(data)
    if zlib.crc32(data[_CHECKSUM.size :]) != checksum:
        raise ValueError("the checksum does not fit")
    if len(data) != _HEADER.size + length + needed:
        raise ValueError(f"{len(data)} bytes, expected {_HEADER.size + length + needed}")
    key = os.fsdecode(data[_HEADER.size : _HEADER.size + length])
    ids = np.empty((tokens, len(types)), np.int32)
    position = _HEADER.size + length
    for column, kind in enumerate(types):
        ids[:, column] = np.frombuffer(data, kind, tokens, position)
        position += tokens * kind.itemsize
    return Record(ids, label, key, crop)


def bit_order_of(config: Config) -> BitOrder:
    """The order of the bits of a tokenizer's ids; learned codes have none, and any will do."""
    order: BitOrder = getattr(config.quantizer, "bit_order", "lsb_first")
    return order


def split_ids(
    ids: Int[np.ndarray, "*b"], vocabularies: Sequence[int], bit_order: BitOrder = "lsb_first"
) -> Int32[np.ndarray, "*b S"]:
    """Ids of any integer type as sub-tokens, those of `sub_tokens` side by side.

    Raises:
        ValueError: ids that are no integers, or outside the vocabularies.
    """
    return np.stack(sub_tokens(_widened(ids, math.prod(vocabularies), "ids"), vocabularies, bit_order), -1)


def sub_tokens(ids: Any, vocabularies: Sequence[int], bit_order: BitOrder = "lsb_first") -> list[Any]:
    """The sub-tokens of ids, an array each: of two, the first is of the first channels of an LFQ code.

    Those are the lowest bits of an id, or with `msb_first` the highest; a sub-token has the order of the id. Works on
    integer arrays of NumPy and of either framework, of a type that holds every id: see `split_ids`.
    """
    if len(vocabularies) == 1:
        return [ids]
    if bit_order == "msb_first":
        return [ids // vocabularies[1], ids % vocabularies[1]]
    return [ids % vocabularies[0], ids // vocabularies[0]]


def join_ids(
    tokens: Int[np.ndarray, "*b S"], vocabularies: Sequence[int], bit_order: BitOrder = "lsb_first"
) -> Int32[np.ndarray, "*b"]:
    """Inverse of `split_ids`.

    Raises:
        ValueError: sub-tokens that are no integers, another number of them, or such that are outside the vocabularies.
    """
    found = np.asarray(tokens)
    if not found.ndim or found.shape[-1] != len(vocabularies):
        raise ValueError(f"sub-tokens have shape {found.shape}, expected (..., {len(vocabularies)})")
    parts = [_widened(found[..., i], v, f"sub-tokens {i}") for i, v in enumerate(vocabularies)]
    if len(parts) == 1:
        return parts[0]
    if bit_order == "msb_first":
        return parts[0] * np.int32(vocabularies[1]) + parts[1]
    return parts[0] + parts[1] * np.int32(vocabularies[0])


def _widened(ids: Any, count: int, name: str) -> Int32[np.ndarray, "*b"]:
    array = np.asarray(ids)
    if not array.size:
        return np.zeros(array.shape, np.int32)
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} are {array.dtype}, expected integers")
    if not 0 <= array.min() <= array.max() < count:
        raise ValueError(f"{name} run from {array.min()} to {array.max()}, expected 0 to {count - 1}")
    return array.astype(np.int32)


def fingerprint(config: Config, weights: Mapping[str, np.ndarray]) -> str:
    """A hash of what decides a tokenizer's ids and images: networks, quantizer, precision, and every weight.

    Args:
        config: of the tokenizer, with the precision that it computes in.
        weights: torch name -> array in torch layout, so that both frameworks find the same.
    """
    quantizer = config.quantizer.model_dump(mode="json")
    decisive = {key: quantizer.get(key) for key in ("kind", "codebook_size", "code_dim", "l2_normalize")}
    model = config.model.model_dump(mode="json")
    defaults = {name: field.default for name, field in type(config.model).model_fields.items()}
    # Settings that came later count where they are used: tokens of earlier versions stay those of their tokenizer.
    network = {key: value for key, value in model.items() if key not in _LATER or value != defaults[key]}
    if bit_order_of(config) != "lsb_first":
        decisive["bit_order"] = bit_order_of(config)
    if config.precision.compute_dtype != "float32":
        decisive["precision"] = config.precision.compute_dtype
    return fingerprint_of([network, decisive], weights)


def fingerprint_of(network: Any, weights: Mapping[str, np.ndarray]) -> str:
    """A hash of what describes a network, as plain values, and of its weights."""
    digest = hashlib.sha256(json.dumps(network).encode())
    for name in sorted(weights):
        array = np.ascontiguousarray(weights[name])
        digest.update(f"{name} {array.dtype.name} {array.shape}".encode())
        digest.update(array.view(np.uint8).data if array.size else b"")
    return digest.hexdigest()
