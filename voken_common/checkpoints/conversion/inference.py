"""One set of weights of any checkpoint file, as the .safetensors file that both frameworks load for inference."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

from voken_common.atomic_write import replacing
from voken_common.checkpoints import weight_names as names
from voken_common.checkpoints.conversion import lightning
from voken_common.checkpoints.conversion.contents import Contents, Manifest, check_finite, check_networks, narrow
from voken_common.checkpoints.conversion.formats import read_file
from voken_common.checkpoints.conversion.inferred import inferred_config
from voken_common.checkpoints.conversion.matching import difference, find_config, published_tokenizer
from voken_common.checkpoints.conversion.safetensors_file import write_safetensors
from voken_common.checkpoints.steps import Weights
from voken_common.config.loading import AnyConfig, load_any_config
from voken_common.config.schema.generator import GeneratorConfig
from voken_common.errors import CheckpointError
from voken_common.published.models import PublishedModel, config_file

logger = logging.getLogger("voken")

ManifestOf = Callable[[AnyConfig], Manifest]
"""Names and shapes, under torch names, of the generator's weights of a configuration."""


@dataclasses.dataclass
class Readable:
    """A checkpoint file whose configuration is known and whose weights are those of its networks.

    Attributes:
        contents: all sets of weights that the file holds, by their names; no discriminator, no training state.
        model: the published model it is, or None for a configuration of one's own.
        first_stage: the same of the tokenizer inside a generator's file.
    """

    contents: Contents
    model: PublishedModel | None
    first_stage: Readable | None = None

    @property
    def sets(self) -> list[Weights]:
        """The sets of weights in it, the averages first."""
        present: list[Weights] = ["ema", "raw"]
        return [weights for weights in present if weights in self.contents.weights]


def open_for_inference(
    path: Path,
    manifest_of: ManifestOf,
    *,
    model: PublishedModel | None = None,
    config: AnyConfig | None = None,
    name: str = "",
    verify: bool = True,
) -> Readable:
    """Read a checkpoint file, find its configuration, and check that all weights of its networks are there.

    Objects in it that are no data are skipped; nothing of them runs. The discriminator and the training state are left
    out unread.

    Args:
        path: the file.
        manifest_of: gives names and shapes of a configuration's generator; it is compared strictly.
        model: the published model that it must be; None: its own configuration, or whatever published model fits.
        config: the configuration that it must have, instead of the model's.
        name: of the file, by which a model is chosen among those that share a network; that of `path` by default.
        verify: whether to verify the checksums of a .safetensors file.

    Raises:
        CheckpointError: no checkpoint, a damaged one, or one of no known model.
        NameMismatch: names or shapes are missing, unexpected or different; all are listed.
    """
    contents = _without_training(read_file(path, "skip", verify=verify))
    readable = Readable(contents, model)
    if config is not None:
        contents.config = config
    elif model is not None:
        contents.config = load_any_config(config_file(model))
    elif contents.config is None:
        contents.config, readable.model = _identified(contents, manifest_of, name or path.name)
    _require_kind(contents, model)
    _name_and_check(contents, manifest_of)
    if isinstance(contents.config, GeneratorConfig) and contents.first_stage is not None:
        readable.first_stage = _first_stage(contents.first_stage, contents.config, manifest_of)
    return readable


def write_for_inference(readable: Readable, weights: Weights, target: Path) -> None:
    """Write one set of weights as .safetensors; what is not finite is refused.

    Raises:
        CheckpointError: the set is not there, or holds values that are not finite.
        OSError: the file cannot be written; nothing is left of it.
    """
    contents = dataclasses.replace(readable.contents, weights=dict(readable.contents.weights), dropped=[])
    narrow(contents, "safetensors", weights, "loading")
    check_finite(contents, allow_nonfinite=False)
    with replacing(target) as file:
        write_safetensors(file, contents.weights[weights], contents.meta, weights)


def _identified(contents: Contents, manifest_of: ManifestOf, name: str) -> tuple[AnyConfig, PublishedModel | None]:
    """The published model that fits, else the configuration that the weights imply."""
    try:
        return find_config(contents, manifest_of, prefer=name)
    except CheckpointError:
        config = inferred_config(contents.weights["raw"], Path(name).stem) if contents.kind == "tokenizer" else None
        if config is None or difference(contents, manifest_of(config)) is not None:
            raise
    order = "most" if config.quantizer.kind == "lfq" and config.quantizer.bit_order == "msb_first" else "least"
    logger.warning(
        "%s is no published model: its network is read off its weights, %d codes, ids with the %s significant bit "
        "first; a configuration (config=, --config) says otherwise",
        contents.origin,
        config.quantizer.codebook_size,
        order,
    )
    return config, None


def _without_training(contents: Contents) -> Contents:
    contents.discriminator = contents.discriminator_ema = contents.training = contents.data = None
    prefix = names.ema_name(names.DISCRIMINATOR_PREFIX)
    averages = contents.unnamed_averages
    contents.unnamed_averages = {key: array for key, array in averages.items() if not key.startswith(prefix)}
    return contents


def _require_kind(contents: Contents, model: PublishedModel | None) -> None:
    config = contents.config
    assert config is not None
    if config.kind != contents.kind:
        what = f"expected {model.name}" if model is not None else f"its configuration, {config.name}, is for"
        raise CheckpointError(f"{contents.origin} holds the weights of a {contents.kind}; {what}, a {config.kind}")


def _name_and_check(contents: Contents, manifest_of: ManifestOf) -> None:
    assert contents.config is not None
    manifest = manifest_of(contents.config)
    check_networks(contents, manifest, generator_only=True)
    lightning.resolve_averages(contents, dataclasses.replace(manifest, discriminator={}))
    check_networks(contents, manifest, generator_only=True)


def _first_stage(contents: Contents, config: GeneratorConfig, manifest_of: ManifestOf) -> Readable:
    """The tokenizer of a generator's file: its own configuration, else the published one of such a generator."""
    readable = Readable(_without_training(contents), None)
    if contents.config is None:
        preferred = published_tokenizer(config) or ""
        contents.config, readable.model = find_config(contents, manifest_of, prefer=preferred)
    _name_and_check(contents, manifest_of)
    return readable
