"""Token shards turned back into pictures: one PNG per sample."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from voken_common.data.errors import DataError
from voken_common.data.tokens.encode import EncodingTokenizer
from voken_common.data.tokens.format import join_ids
from voken_common.data.tokens.shards import TokenShardSource
from voken_common.pixels import to_uint8
from voken_common.untrusted.names import SafeNames
from voken_common.visual import save_png


def decode_dataset(
    tokenizer: EncodingTokenizer,
    source: TokenShardSource,
    output: str | Path,
    *,
    batch_size: int = 32,
    max_images: int | None = None,
    show: bool = True,
) -> int:
    """Write `OUTPUT/<key>.png` for every sample, `<key>.crop<n>.png` for crops beside the first.

    Keys become paths by `voken_common.untrusted.names`: none leaves the folder, and no two share a file.

    Args:
        tokenizer: the one that made the tokens.
        source: the shards.
        output: folder to write to.
        batch_size: samples per call of the tokenizer.
        max_images: only the first ones.
        show: a progress bar.

    Returns:
        number of pictures.

    Raises:
        DataError: the shards are of another tokenizer, or damaged.
    """
    info = source.info
    require_tokenizer(tokenizer, source)
    count = len(source) if max_images is None else min(max_images, len(source))
    names = SafeNames()
    with tqdm(total=count, unit="image", disable=not show, mininterval=0.5 if sys.stderr.isatty() else 15.0) as bar:
        for first in range(0, count, batch_size):
            samples = [source[index] for index in range(first, min(first + batch_size, count))]
            tokens = np.stack([sample["tokens"] for sample in samples])
            ids = join_ids(tokens, info.vocabularies, info.tokenizer.bit_order)
            padded = np.concatenate([ids, np.repeat(ids[-1:], batch_size - len(ids), axis=0)])
            images = to_uint8(tokenizer.decode(padded.reshape(-1, *info.grid)))
            for number, (sample, image) in enumerate(zip(samples, images, strict=False), start=first):
                suffix = f".crop{sample['crop']}.png" if sample["crop"] else ".png"
                name = names.path(sample["key"], suffix, distinct=f"sample{number}")
                save_png(Path(output) / name, image, below=output)
            bar.update(len(samples))
    return count


def require_tokenizer(tokenizer: EncodingTokenizer, source: TokenShardSource) -> None:
    """Raise DataError unless shards are of this tokenizer."""
    info = source.info
    if (found := tokenizer.fingerprint()) != info.tokenizer.fingerprint:
        raise DataError(
            f"{source.path} holds tokens of tokenizer {info.tokenizer.fingerprint[:12]} ({info.tokenizer.name}, "
            f"{info.tokenizer.reference}), found {found[:12]} ({tokenizer.config.name}): name its own checkpoint, and "
            "the set of weights, with --checkpoint and --weights"
        )
