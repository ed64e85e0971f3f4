"""A model as a folder to share, and that as a repository of the hub: weights, configuration, a card, a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from voken_common.atomic_write import replacing
from voken_common.checkpoints.conversion.safetensors_file import write_safetensors
from voken_common.checkpoints.hub.card import model_card
from voken_common.checkpoints.hub.download import WEIGHTS_FILE, explain
from voken_common.checkpoints.hub.reference import HubReference
from voken_common.checkpoints.steps import Meta, Weights
from voken_common.config.loading import AnyConfig, to_yaml
from voken_common.published.models import PublishedModel

TOKENIZER_FILE = "tokenizer.safetensors"
"""The tokenizer of a generator."""
CONFIG_FILE, CARD_FILE, PICTURE_FILE = "config.yaml", "README.md", "picture.png"


@dataclass(frozen=True)
class Shared:
    """Parts of a model that are shared.

    Attributes:
        config: its configuration.
        arrays: torch name -> array in torch layout.
        weights: the set that they are.
        metrics: what its last validation measured, by name.
        model: the published model that it is, if it is one.
        picture: for the card: reconstructions, or samples.
    """

    config: AnyConfig
    arrays: Mapping[str, np.ndarray]
    weights: Weights = "ema"
    metrics: Mapping[str, float] = field(default_factory=dict)
    model: PublishedModel | None = None
    picture: UInt8[np.ndarray, "h w 3"] | None = None


def save_folder(
    folder: str | Path, shared: Shared, tokenizer: Shared | None = None, repository: str | None = None
) -> Path:
    """Write a model so that `load` reads the folder's weights, and the hub shows its card. Files there are replaced.

    Args:
        folder: created where it is not there.
        shared: a tokenizer or a generator.
        tokenizer: of a generator.
        repository: `OWNER/NAME` that the card names; that of `folder` by default.

    Returns:
        the file of the weights.

    Raises:
        OSError: it cannot be written; no file is half-written.
    """
    from voken_common.visual.files import save_png

    folder = Path(folder)
    config = shared.config
    if tokenizer is not None:
        config = config.model_copy(update={"tokenizer": TOKENIZER_FILE})
        _write(folder / TOKENIZER_FILE, tokenizer, tokenizer.config)
    _write(folder / WEIGHTS_FILE, shared, config)
    with replacing(folder / CONFIG_FILE) as file:
        file.write(to_yaml(config).encode())
    if shared.picture is not None:
        save_png(folder / PICTURE_FILE, shared.picture)
    picture = PICTURE_FILE if shared.picture is not None else None
    card = model_card(config, shared.metrics, shared.model, picture, repository or str(folder))
    with replacing(folder / CARD_FILE) as file:
        file.write(card.encode())
    return folder / WEIGHTS_FILE


def push_folder(folder: str | Path, repository: str, *, private: bool = False, message: str | None = None) -> str:
    """Put a folder's files into a repository of the hub, which is created where it is not there.

    Args:
        folder: as `save_folder` writes it.
        repository: `OWNER/NAME`.
        private: of a repository that is created.
        message: of the commit.

    Returns:
        the address of the commit.

    Raises:
        HubError: no access, or the hub is out of reach.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repository, folder_path=str(folder), commit_message=message or "Model of voken"
        )
    # As in `download.fetch`.
    except Exception as error:
        explain(error, HubReference(repository), pushing=True)
    return str(done.commit_url)


def _write(path: Path, shared: Shared, config: AnyConfig) -> None:
    meta = Meta(config, 0, dict(shared.metrics))
    with replacing(path) as file:
        write_safetensors(file, shared.arrays, meta, shared.weights)
