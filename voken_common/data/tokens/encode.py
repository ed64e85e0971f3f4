"""Encoding a data set: images through a tokenizer into token shards, the same in both frameworks.

What a sample is says `voken_common.data.tokens.views`: a view of an image, or a window of a video. Shards are written
one after the other and batches never reach over the end of one, so a shard's bytes depend on neither interruptions nor
the number of processes.

Shape letters: B batch, s side of the images, h w tokens along the sides.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from voken_common.config.schema.data import DataConfig
from voken_common.config.schema.quantizer import LFQConfig
from voken_common.config.schema.tokenizer import Config
from voken_common.data import transforms
from voken_common.data.bad_images import BadImage, BadImageLimit, BadImageLog
from voken_common.data.errors import DataError
from voken_common.data.sources.base import ImageSource
from voken_common.data.sources.build import build_source
from voken_common.data.tokens import folder as token_folder
from voken_common.data.tokens.format import Record, TokenInfo, TokenizerInfo, as_text, split_ids
from voken_common.data.tokens.shards import TokenShardWriter
from voken_common.data.tokens.views import ImageViews, VideoViews, Views

_WAYS = ("image_size", "resize", "flip", "exif_rotate", "reduced_jpeg_decode")
"""Settings of `data` that decide what the tokens are of; the others only decide how fast."""


class EncodingTokenizer(Protocol):
    """The part of a tokenizer that encoding and decoding use: NumPy arrays, images channels last in [-1, 1]."""

    config: Config
    downsampling: int
    decode: Callable[[Int[np.ndarray, "B h w"]], Float[np.ndarray, "B s s 3"]]
    fingerprint: Callable[[], str]

    @property
    def encode(self) -> Callable[[Float[np.ndarray, "B s s 3"]], Int[np.ndarray, "B h w"]]:
        """Ids of images."""


@dataclasses.dataclass(frozen=True)
class Encoding:
    """Settings of encoding a data set, besides its `data` section.

    Attributes:
        crops: views per sample of the source. The first is that of validation, the others are cut at random (and
            mirrored with probability one half where `data.flip` says so).
        sub_tokens: bits of the first and the second sub-token; None: what the tokenizer's configuration says.
        batch_size: images per call of the tokenizer.
        samples_per_shard: what an interruption costs at most.
        seed: of the random crops.
        process_index, process_count: shards are dealt out to processes in turn.
        reference: what to call the tokenizer's checkpoint in the shards.
        show: a progress bar, and images per second.
    """

    crops: int = 1
    sub_tokens: tuple[int, int] | None = None
    batch_size: int = 32
    samples_per_shard: int = 4096
    seed: int = 0
    process_index: int = 0
    process_count: int = 1
    reference: str = ""
    show: bool = True

    def __post_init__(self) -> None:
        for field in ("crops", "batch_size", "samples_per_shard", "process_count"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field.replace('_', ' ')} is {getattr(self, field)}, expected at least 1")
        if not 0 <= self.process_index < self.process_count:
            raise ValueError(f"process {self.process_index} of {self.process_count}: expected 0 to count - 1")


def encode_dataset(
    tokenizer: EncodingTokenizer, data: DataConfig, output: str | Path, encoding: Encoding | None = None
) -> TokenInfo | None:
    """Write the shards of this process that are not finished yet.

    Args:
        tokenizer: whose ids are written.
        data: `train` is encoded, with `image_size`, `resize`, `exif_rotate`, `flip`; `workers`, `cache` and
            `max_bad_fraction` as in training.
        output: folder of the shards; what is finished there stays.
        encoding: everything else.

    Returns:
        what the data set says about itself, or None while shards of other processes are missing.

    Raises:
        DataError: the source cannot be used, the folder holds other tokens, or too many images are bad.
        ValueError: an image size or sub-tokens that the tokenizer does not have.
    """
    encoding = encoding or Encoding()
    if data.is_video != tokenizer.config.model.is_video:
        given, wanted = ("videos", "images") if data.is_video else ("images", "videos")
        raise DataError(f"the source gives {given}, and {tokenizer.config.name} makes tokens of {wanted}")
    source = build_source(data.train)
    check_size(tokenizer, data)
    views = views_of(tokenizer, data, source, encoding)
    info = describe(tokenizer, data, source, encoding, views)
    token_folder.start(output, info)
    log = BadImageLog(BadImageLimit(len(source), data.max_bad_fraction), consequence="left out")
    finished = {n: shard for n in range(info.shards) if (shard := token_folder.read_shard(Path(output), n))}
    log.record(BadImage(views.index(sample), why) for shard in finished.values() for sample, why in shard.bad)
    own = range(encoding.process_index, info.shards, encoding.process_count)
    todo = [number for number in own if number not in finished]
    total = sum(len(token_folder.samples_of(number, info)) for number in own)
    left = sum(len(token_folder.samples_of(number, info)) for number in todo)
    with _progress(total, total - left, encoding, "window" if data.is_video else "image") as bar:
        batches = _batches(views, todo, info, encoding, data.workers)
        try:
            for number in todo:
                _write_shard(tokenizer, batches, number, info, Path(output), encoding, log, bar, views)
        finally:
            batches.close()
    _check_all(Path(output), info, source, data, views)
    return token_folder.finish(output, info)


def views_of(
    tokenizer: EncodingTokenizer, data: DataConfig, source: ImageSource, encoding: Encoding
) -> ImageViews | VideoViews:
    """The samples of a data set.

    Raises:
        ValueError: several crops of videos, which have windows instead.
    """
    if not data.is_video:
        return ImageViews(
            source,
            data,
            tokenizer.downsampling,
            crops=encoding.crops,
            seed=encoding.seed,
            batch_size=encoding.batch_size,
        )
    if encoding.crops > 1:
        raise ValueError(f"crops {encoding.crops}: videos are cut into windows, one view of each; leave it out")
    time = tokenizer.config.model.time_downsampling
    return VideoViews(source, data, tokenizer.downsampling, time, batch_size=encoding.batch_size)


def check_size(tokenizer: EncodingTokenizer, data: DataConfig) -> None:
    """Raise ValueError unless the image size is whole tokens."""
    config, size = tokenizer.config, data.image_size
    if size % tokenizer.downsampling:
        raise ValueError(
            f"the image size {size} is no multiple of {tokenizer.downsampling}, the pixels per token of {config.name}: "
            f"choose {size // tokenizer.downsampling * tokenizer.downsampling or tokenizer.downsampling}"
        )


def describe(
    tokenizer: EncodingTokenizer, data: DataConfig, source: ImageSource, encoding: Encoding, views: Views
) -> TokenInfo:
    """Return the description that the data set will carry.

    Raises:
        ValueError: as `encode_dataset`.
    """
    config = tokenizer.config
    ways = {key: getattr(data, key) for key in _WAYS} | {"crops": encoding.crops, "seed": encoding.seed}
    return TokenInfo(
        grid=views.grid,
        vocabularies=vocabularies(config, encoding.sub_tokens),
        tokenizer=TokenizerInfo(
            name=config.name,
            reference=as_text(encoding.reference),
            fingerprint=tokenizer.fingerprint(),
            config=as_text(config.model_dump(mode="json")),
        ),
        source=as_text(data.train.model_dump(mode="json") | ways),
        class_names=source.classes,
        samples=views.count,
        samples_per_shard=encoding.samples_per_shard,
    )


def vocabularies(config: Config, sub_tokens: tuple[int, int] | None) -> tuple[int, ...]:
    """Codes per sub-token of a tokenizer's ids.

    Args:
        config: of the tokenizer.
        sub_tokens: bits of the two; None: `quantizer.token_bits` where there is such, else one token.

    Raises:
        ValueError: the ids do not split like that.
    """
    quantizer = config.quantizer
    bits = sub_tokens or (quantizer.token_bits if isinstance(quantizer, LFQConfig) else None)
    if bits is None:
        return (quantizer.codebook_size,)
    if not isinstance(quantizer, LFQConfig):
        raise ValueError(f"sub-tokens are bits of LFQ codes, {config.name} is {quantizer.kind}: leave them out")
    if min(bits) < 1 or sum(bits) != quantizer.code_dim:
        raise ValueError(
            f"sub-tokens of {bits[0]} and {bits[1]} bits do not make the {quantizer.code_dim} bits of a code of "
            f"{config.name}; expected two positive numbers that add up to {quantizer.code_dim}"
        )
    return 2 ** bits[0], 2 ** bits[1]


def _batches(
    views: Views, todo: list[int], info: TokenInfo, encoding: Encoding, workers: int
) -> Generator[dict[str, Any], None, None]:
    """The batches of these shards, prepared ahead; to be closed.

    Raises:
        DataError: reading failed, or a worker process was killed.
    """
    # Imported here: it loads JAX where that is installed.
    from voken_common.data.order import grain, next_batch, prefetched

    ranges = [samples for number in todo for samples in _split(token_folder.samples_of(number, info), encoding)]
    batches = grain.MapDataset.source(ranges).map(views.batch)
    iterator = iter(prefetched(batches, workers, encoding.batch_size * math.prod(views.shape)))
    try:
        for _ in ranges:
            yield next_batch(iterator)
    finally:
        iterator.close()


def _split(samples: range, encoding: Encoding) -> Iterator[range]:
    for first in range(0, len(samples), encoding.batch_size):
        yield samples[first : first + encoding.batch_size]


def _write_shard(
    tokenizer: EncodingTokenizer,
    batches: Iterator[dict[str, Any]],
    number: int,
    info: TokenInfo,
    output: Path,
    encoding: Encoding,
    log: BadImageLog,
    bar: tqdm[Any],
    views: Views,
) -> None:
    with TokenShardWriter(output, number, info) as writer:
        for samples in _split(token_folder.samples_of(number, info), encoding):
            batch = next(batches)
            ids = tokenizer.encode(transforms.to_float(batch["pixels"]))
            tokens = split_ids(ids, info.vocabularies, info.tokenizer.bit_order).reshape(
                len(ids), info.tokens, len(info.vocabularies)
            )
            for place, (sample, row) in enumerate(zip(samples, batch["rows"], strict=True)):
                if isinstance(row, str):
                    log.record([BadImage(views.index(sample), row)])
                    writer.leave_out(sample, row)
                else:
                    writer.add(Record(tokens[place], row.label, row.key, row.crop), row.times)
            bar.update(len(samples))


def _check_all(output: Path, info: TokenInfo, source: ImageSource, data: DataConfig, views: Views) -> None:
    """Every process counts its own bad images; together they may be too many."""
    shards = [token_folder.read_shard(output, number) for number in range(info.shards)]
    bad = {views.index(sample): why for shard in shards if shard is not None for sample, why in shard.bad}
    BadImageLimit(len(source), data.max_bad_fraction).check(BadImage(index, why) for index, why in bad.items())


def _progress(total: int, done: int, encoding: Encoding, unit: str) -> tqdm[Any]:
    return tqdm(
        total=total,
        initial=done,
        unit=unit,
        desc=f"process {encoding.process_index}" if encoding.process_count > 1 else None,
        disable=not encoding.show,
        dynamic_ncols=True,
        mininterval=0.5 if sys.stderr.isatty() else 15.0,
    )
