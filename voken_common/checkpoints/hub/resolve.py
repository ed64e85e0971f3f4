"""From whatever a user calls a checkpoint to what a framework loads: downloaded and converted if it must be, once."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from voken_common.checkpoints.checksums import zip_problems
from voken_common.checkpoints.conversion.formats import read_file
from voken_common.checkpoints.conversion.inference import ManifestOf
from voken_common.checkpoints.conversion.matching import named_config
from voken_common.checkpoints.conversion.safetensors_file import is_safetensors, read_meta_of
from voken_common.checkpoints.hub.converted import converted
from voken_common.checkpoints.hub.download import WEIGHTS_FILE, download, fetch
from voken_common.checkpoints.hub.reference import HubReference, parse
from voken_common.checkpoints.hub.sharing import TOKENIZER_FILE
from voken_common.checkpoints.steps import FOLDER, Meta, Step, Weights, choose_step
from voken_common.config.loading import AnyConfig
from voken_common.config.schema.generator import GeneratorConfig
from voken_common.errors import CheckpointError
from voken_common.published import models

logger = logging.getLogger("voken")

Framework = Literal["jax", "torch"]


@dataclass(frozen=True)
class Resolved:
    """A checkpoint that a framework loads.

    Attributes:
        path: a .safetensors file of voken; or, in its own framework, a work directory, a step in it, or a .pt file.
        source: where it came from, for people: a path, or the repository with its commit and file.
        model: the published model it is, if it is one.
        tokenizer: of a generator: the checkpoint of the tokenizer that came with it, or the name of the published one
            that belongs to it, for `resolve` again; None: none is known but what its configuration names.
    """

    path: Path
    source: str
    model: models.PublishedModel | None = None
    tokenizer: str | Path | None = None


def resolve(
    source: str | Path,
    framework: Framework,
    manifest_of: ManifestOf,
    *,
    step: Step = "latest",
    weights: Weights | None = None,
    config: str | Path | None = None,
    verify: bool = True,
) -> Resolved:
    """Find the file that a framework loads for a source: downloaded if it is on the hub, converted if it is foreign.

    A file that is foreign to the framework (Lightning's, a plain state dict, the other framework's) is converted once,
    strictly, to a .safetensors file in the cache folder (`VOKEN_CACHE`) under its sha256; a second call reads that. A
    file that fits several published models, which share a network, is taken for the one that it is called after, else
    for the first, and a warning says so.

    Args:
        source: an existing path (a file, a work directory, a step in it), which goes first; else a published model
            (`voken models`: a name, or `PROJECT/NAME`); else `OWNER/NAME[@REVISION][:FILE]` on the hub.
        framework: that is to load it. Paths of its own formats come back as they are.
        manifest_of: names and shapes under torch names of the generator's weights of a configuration.
        step: which step of a work directory of the other framework; otherwise the loader chooses.
        weights: the set that is wanted of a foreign file; None: the averages if there are any.
        config: a YAML file or a published model, for a foreign file that carries no configuration of its own.
        verify: whether to verify the checksums of what is read here.

    Raises:
        CheckpointError: nothing there, it cannot be had, or it cannot be used; the message says what to do.
        NameMismatch: names or shapes of weights are missing, unexpected or different; all are listed.
    """
    parsed = parse(source)
    given = None if config is None else named_config(str(config), "config")
    if isinstance(parsed, HubReference):
        return _from_hub(parsed, framework, manifest_of, weights, given, verify)
    if (parsed / WEIGHTS_FILE).is_file():
        parsed = parsed / WEIGHTS_FILE
    if parsed.is_dir():
        foreign = _foreign_step(parsed, framework, step, verify)
        if foreign is None:
            return Resolved(parsed, str(source))
        parsed = foreign
    if not parsed.is_file() or (given is None and _is_native(parsed, framework)):
        # What is not there has its message from the loader, which knows what it looks for.
        return Resolved(parsed, str(source))
    found = converted(parsed, manifest_of, weights=weights, config=given, verify=verify)
    return Resolved(found.path, str(source), found.model, found.tokenizer or _published_tokenizer(found.model))


def _from_hub(
    reference: HubReference,
    framework: Framework,
    manifest_of: ManifestOf,
    weights: Weights | None,
    config: AnyConfig | None,
    verify: bool,
) -> Resolved:
    if reference.model is not None and not models.has_config(reference.model):
        raise CheckpointError(
            f"{reference} is {reference.model.name}, a {reference.model.family}: this version of voken does not "
            "support it yet"
        )
    file = download(reference)
    source, model = str(file.reference), reference.model
    if config is None and _is_native(file.path, framework):
        return Resolved(file.path, source, model, _tokenizer_beside(file.path, file.reference))
    name = file.reference.file or file.path.name
    found = converted(
        file.path, manifest_of, weights=weights, model=model, config=config, name=Path(name).name, verify=verify
    )
    model = found.model or model
    return Resolved(found.path, source, model, found.tokenizer or _published_tokenizer(model))


def _published_tokenizer(model: models.PublishedModel | None) -> str | None:
    return model.tokenizer if model is not None else None


def _tokenizer_beside(path: Path, reference: HubReference) -> Path | None:
    """The tokenizer that was pushed with a generator."""
    if not is_safetensors(path) or Path(reference.file or "").name != WEIGHTS_FILE:
        return None
    meta = read_meta_of(path)
    if meta is None or not isinstance(meta.config, GeneratorConfig) or meta.config.tokenizer is None:
        return None
    beside = Path(reference.file or "").with_name(TOKENIZER_FILE)
    return fetch(dataclasses.replace(reference, file=beside.as_posix()))


def _is_native(path: Path, framework: Framework) -> bool:
    """True if a framework loads a file as it is: .safetensors of voken, and in PyTorch its own .pt."""
    if is_safetensors(path):
        return read_meta_of(path) is not None
    return framework == "torch" and _is_own_torch_file(path)


def _is_own_torch_file(path: Path) -> bool:
    try:
        return path.suffix == ".pt" and read_file(path, "skip", verify=False).format == "torch"
    except ValueError:
        # Damage has its message from who reads the file.
        return False


def _foreign_step(folder: Path, framework: Framework, step: Step, verify: bool) -> Path | None:
    """The file of a step of PyTorch, where JAX is to load it; None for a folder of the framework's own."""
    if framework == "torch":
        return None
    root = folder / FOLDER if (folder / FOLDER).is_dir() else folder
    if any((place / "meta").is_dir() for place in (folder, *root.glob("*"))):
        return None
    steps = {int(p.stem): p for p in root.glob("*.pt") if p.stem.isdecimal() and p.is_file()}
    if not steps:
        return None
    return choose_step(steps, step, _meta_of_file, zip_problems if verify else lambda _: [])


def _meta_of_file(path: Path) -> Meta:
    return read_file(path, verify=False).meta
