"""The cache of converted checkpoints: each is converted once, and found again by the sha256 of the file it came from.

`CACHE/converted/<sha256>/` holds `<label>.json`, what is known of the file, and `<label>-<set>.safetensors`. The label
is the model or configuration that was asked for, since files of several models may have the same bytes.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from voken_common.atomic_write import replacing
from voken_common.checkpoints.conversion.inference import (
    ManifestOf,
    Readable,
    open_for_inference,
    write_for_inference,
)
from voken_common.checkpoints.downloads import default_cache
from voken_common.checkpoints.hub.content import content_hash
from voken_common.checkpoints.steps import Weights
from voken_common.config.loading import AnyConfig, load_any_config
from voken_common.errors import CheckpointError
from voken_common.published import models

logger = logging.getLogger("voken")

_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Converted:
    """A converted checkpoint.

    Attributes:
        path: a .safetensors file of voken.
        model: the published model it is, if it is one.
        tokenizer: of a generator whose file holds one: the same of it.
    """

    path: Path
    model: models.PublishedModel | None
    tokenizer: Path | None = None


def converted(
    source: Path,
    manifest_of: ManifestOf,
    *,
    weights: Weights | None = None,
    model: models.PublishedModel | None = None,
    config: AnyConfig | None = None,
    name: str = "",
    verify: bool = True,
) -> Converted:
    """A checkpoint file as .safetensors, converted now or found in the cache.

    Args:
        source: any checkpoint file.
        weights: the set that is wanted; None: the averages if there are any.
        manifest_of, model, config, name, verify: of `open_for_inference`.

    Raises:
        CheckpointError: it cannot be used, or the set is not in it.
        NameMismatch: the weights are not those of its networks.
    """
    folder = default_cache() / "converted" / content_hash(source)
    label = _label(model, config, name or source.name)
    record = _read_record(folder / f"{label}.json")
    chosen = _choose(record["sets"], weights, source) if record else None
    path, tokenizer = folder / f"{label}-{chosen}.safetensors", folder / f"{label}-tokenizer.safetensors"
    if record is None or not path.is_file() or (record["tokenizer"] and not tokenizer.is_file()):
        readable = open_for_inference(
            source, manifest_of, model=model, config=config, name=name or source.name, verify=verify
        )
        record = _record_of(readable)
        chosen = _choose(readable.sets, weights, source)
        path = folder / f"{label}-{chosen}.safetensors"
        _write(readable, chosen, path, tokenizer, source)
        with _explained(source, folder), replacing(folder / f"{label}.json") as file:
            file.write(json.dumps(record).encode())
    found = models.find(record["model"]) if record["model"] else None
    return Converted(path, found, tokenizer if record["tokenizer"] else None)


def _write(readable: Readable, weights: Weights, path: Path, tokenizer: Path, source: Path) -> None:
    logger.info("converting %s, once; the result is kept in %s", source, path.parent)
    with _explained(source, path.parent):
        write_for_inference(readable, weights, path)
        if readable.first_stage is not None:
            write_for_inference(readable.first_stage, readable.first_stage.sets[0], tokenizer)


def _choose(sets: list[Weights], weights: Weights | None, source: Path) -> Weights:
    if weights is None:
        return sets[0]
    if weights not in sets:
        raise CheckpointError(f"{source} holds {' and '.join(sets)} weights, not the {weights} ones that are asked for")
    return weights


def _label(model: models.PublishedModel | None, config: AnyConfig | None, name: str) -> str:
    """Turn a request into a file name."""
    if config is not None:
        return "config-" + _digest(config)
    if model is not None:
        return model.name
    # The name decides between models that share a network.
    hint = "-" + hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
    return f"any{hint}"


def _record_of(readable: Readable) -> dict[str, Any]:
    model = readable.model
    assert readable.contents.config is not None
    return {
        "format": _FORMAT,
        "sets": readable.sets,
        "model": model.name if model is not None else None,
        "config": _digest(readable.contents.config),
        "tokenizer": readable.first_stage is not None,
    }


def _read_record(file: Path) -> dict[str, Any] | None:
    """Return the record of a file; None if it is unknown, or if this version would describe the model differently."""
    try:
        record = json.loads(file.read_bytes())
        if record["format"] != _FORMAT or not record["sets"]:
            return None
        if record["model"] is not None:
            config = load_any_config(models.config_file(models.find(record["model"])))
            if record["config"] != _digest(config):
                return None
        return {key: record[key] for key in ("format", "sets", "model", "config", "tokenizer")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _digest(config: AnyConfig) -> str:
    return hashlib.sha256(json.dumps(config.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:16]


class _explained:
    """Turns an error of the disk under the cache into one that says what to do."""

    def __init__(self, source: Path, folder: Path):
        self._source, self._folder = source, folder

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            why = "there is no room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error)
            raise CheckpointError(
                f"{self._source} could not be converted: {self._folder} cannot be written ({why}). Make room or "
                "correct the permissions, or name another folder by VOKEN_CACHE; nothing half-written was left"
            ) from error
