"""The part of a data section that a checkpoint may decide: the preparation of images, never a path.

Checkpoints come from strangers. The `data` section inside one names folders, files to keep lists in and addresses of
its maker's machine; on ours they would be read, and some of them written. Where data lie comes from the user alone.
"""

from __future__ import annotations

import os
from typing import Any

from voken_common.config.schema.data import DataConfig, SkimageConfig, VideoFolderConfig

_PREPARATION = (
    "image_size",
    "resize",
    "crop",
    "flip",
    "exif_rotate",
    "reduced_jpeg_decode",
    "resize_crop_only",
    "max_bad_fraction",
)
_CLIPS = ("frames", "stride", "fps", "short")


def preparation(data: DataConfig) -> dict[str, Any]:
    """The `data` section that follows from one out of a checkpoint, to lay the user's over it.

    Its sources keep their `kind` and what describes their samples. Only the photographs of scikit-image stay whole:
    they lie nowhere else.

    Args:
        data: of the checkpoint.

    Returns:
        plain values; `train` and `validation` lack whatever names a file.
    """
    found: dict[str, Any] = {key: getattr(data, key) for key in _PREPARATION}
    found["workers"] = min(data.workers, os.cpu_count() or 1)
    for split in ("train", "validation"):
        if (source := getattr(data, split)) is not None:
            found[split] = _described(source)
    return found


def names_data(source: Any) -> bool:
    """True if a source, as plain values, names a path of its data."""
    return isinstance(source, dict) and (source.get("kind") == "skimage" or source.keys() & _PLACES != set())


_PLACES = {"path", "sets", "name"}
"""Without which no source can be opened."""


def _described(source: Any) -> dict[str, Any]:
    if isinstance(source, SkimageConfig):
        return source.model_dump(mode="json")
    kept = _CLIPS if isinstance(source, VideoFolderConfig) else ()
    return {"kind": source.kind} | {key: getattr(source, key) for key in kept}
