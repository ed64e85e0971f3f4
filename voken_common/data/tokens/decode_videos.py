"""Token shards of videos turned back into MP4 files, one per video, window by window."""

from __future__ import annotations

import itertools
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
from tqdm import tqdm

from voken_common.data.tokens.decode import require_tokenizer
from voken_common.data.tokens.encode import EncodingTokenizer
from voken_common.data.tokens.format import join_ids
from voken_common.data.tokens.shards import TokenShardSource
from voken_common.data.video.writing import VideoWriter
from voken_common.pixels import to_uint8
from voken_common.untrusted.names import SafeNames

_RATE = Fraction(25)


def decode_videos(
    tokenizer: EncodingTokenizer,
    source: TokenShardSource,
    output: str | Path,
    *,
    batch_size: int = 32,
    max_images: int | None = None,
    show: bool = True,
) -> int:
    """Write `OUTPUT/<key>.mp4` for every video, its windows one after the other as they were cut.

    Args:
        tokenizer: the one that made the tokens.
        source: the shards.
        output: folder to write to.
        batch_size: windows per call of the tokenizer.
        max_images: only the first windows.
        show: a progress bar.

    Returns:
        number of videos.

    Raises:
        DataError: the shards are of another tokenizer, of images, or damaged.
    """
    require_tokenizer(tokenizer, source)
    count = len(source) if max_images is None else min(max_images, len(source))
    videos, names = 0, SafeNames()
    with tqdm(total=count, unit="window", disable=not show, mininterval=0.5 if sys.stderr.isatty() else 15.0) as bar:
        # The windows of a video lie one after the other, in the order in which they are shown.
        for key, group in itertools.groupby(range(count), key=lambda index: source[index]["key"]):
            windows = list(group)
            _write(tokenizer, source, windows, Path(output) / names.path(key, ".mp4"), batch_size)
            videos += 1
            bar.update(len(windows))
    return videos


def _write(
    tokenizer: EncodingTokenizer, source: TokenShardSource, windows: list[int], path: Path, batch_size: int
) -> None:
    info = source.info
    times = source.times(windows[0])
    rate = Fraction((len(times) - 1) / (times[-1] - times[0])).limit_denominator(1001) if len(times) > 1 else _RATE
    with VideoWriter(path, rate=rate) as writer:
        for first in range(0, len(windows), batch_size):
            numbers = windows[first : first + batch_size]
            ids = join_ids(
                np.stack([source[number]["tokens"] for number in numbers]), info.vocabularies, info.tokenizer.bit_order
            )
            clips = to_uint8(np.asarray(tokenizer.decode(ids.reshape(-1, *info.grid))))
            for number, clip in zip(numbers, clips, strict=True):
                for frame, time in zip(clip, source.times(number), strict=False):
                    writer.write(frame, Fraction(time))
