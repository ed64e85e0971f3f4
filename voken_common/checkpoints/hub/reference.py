"""Read a user's name for a checkpoint: a published model, a repository of the hub, or a path."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from voken_common.errors import CheckpointError
from voken_common.published import models
from voken_common.published.bundled import bundled

_PART = r"[A-Za-z0-9][\w.\-]*"
_REPOSITORY = re.compile(rf"(?P<repository>{_PART}/{_PART})(@(?P<revision>[^@:\s]+))?(:(?P<file>[^:\s][^:]*))?")
_SUFFIXES = (".ckpt", ".pt", ".pth", ".safetensors", ".bin")


@dataclass(frozen=True)
class HubReference:
    """A file of a repository of the hub.

    Attributes:
        repository: `OWNER/NAME`.
        revision: branch, tag or commit; None: the main branch.
        file: its path in the repository; None: the only checkpoint there.
        model: the published model that the file holds, if the record knows it.
    """

    repository: str
    revision: str | None = None
    file: str | None = None
    model: models.PublishedModel | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.repository}{revision}" + (f", file {self.file}" if self.file else "")


def parse(source: str | Path) -> Path | HubReference:
    """Recognise a source: an existing path, a bundled model, a published one, a repository, or a path.

    The first of them that fits is taken.

    Args:
        source: a path; `tiny`, which comes along; a name of the record (`voken models`); or `OWNER/NAME`, with
            `@REVISION` and `:FILE` if wanted.

    Raises:
        CheckpointError: a repository of several models without the file, or a word that names nothing.
    """
    text = str(source)
    path = Path(text).expanduser()
    if path.exists():
        return path
    if (along := bundled(text)) is not None:
        return along
    known = [model for model in models.MODELS if text in (model.name, model.full_name)]
    if len(known) == 1:
        return HubReference(known[0].repository, None, known[0].file, known[0])
    if len(known) > 1:
        raise CheckpointError(f"{text} are several models: say {' or '.join(model.name for model in known)}")
    found = _REPOSITORY.fullmatch(text)
    if found is None:
        if path.suffix in _SUFFIXES or "/" in text or len(path.parts) != 1:
            return path
        raise CheckpointError(_no_such_name(text))
    reference = HubReference(found["repository"], found["revision"], found["file"])
    alone = reference.file is None and reference.revision is None
    if alone and not models.in_repository(reference.repository) and _is_local(path):
        return path
    return _with_model(reference)


def _with_model(reference: HubReference) -> HubReference:
    there = models.in_repository(reference.repository)
    if reference.file is None and len(there) > 1:
        choices = "\n".join(f"  {model.repository}:{model.file}  ({model.name})" for model in there)
        raise CheckpointError(f"{reference.repository} holds {len(there)} models; say which:\n{choices}")
    if reference.file is not None:
        _require_inside(reference.file)
        there = models.in_repository(reference.repository, reference.file)
    if len(there) != 1:
        return reference
    return HubReference(reference.repository, reference.revision, there[0].file, there[0])


def _require_inside(file: str) -> None:
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts:
        raise CheckpointError(f"file {file} of a repository: expected its path in the repository, such as model.ckpt")


def _is_local(path: Path) -> bool:
    """True if two words with a slash between are a missing path: its folder exists, or it has a suffix."""
    return path.suffix in _SUFFIXES or path.parent.is_dir()


def _no_such_name(text: str) -> str:
    names = [model.name for model in models.MODELS]
    near = difflib.get_close_matches(text, names, n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return (
        f"{text} is no file or folder here and no published model; {hint}`voken models` lists those. A repository of "
        "the hub is named as OWNER/NAME"
    )
