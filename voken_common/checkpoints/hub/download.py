"""Files of the hub through its own client, which keeps a cache, resumes, and follows its environment variables.

`HF_HOME` or `HF_HUB_CACHE` is where its cache lies, `HF_ENDPOINT` a mirror, `HF_TOKEN` (or `hf auth login`) opens
gated repositories, `HF_HUB_OFFLINE=1` keeps it from the network, and `HF_HUB_DISABLE_PROGRESS_BARS=1` quiet. A file
that was brought by hand is looked for first, at `brought_by_hand(reference)`.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from voken_common.checkpoints.downloads import default_cache
from voken_common.checkpoints.hub.content import content_hash
from voken_common.checkpoints.hub.reference import HubReference
from voken_common.errors import CheckpointError, DamagedError

WEIGHTS_FILE = "model.safetensors"
"""What voken calls the weights in a repository that it writes."""
_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth")
_SHA256 = re.compile("[0-9a-f]{64}")


class HubError(CheckpointError):
    """A file of the hub that cannot be had; the message says why and what to do."""


@dataclass(frozen=True)
class HubFile:
    """A file of the hub on this machine.

    Attributes:
        path: where it lies, under its own name.
        reference: with the file, and the commit as revision where the client knows it.
    """

    path: Path
    reference: HubReference


def download(reference: HubReference) -> HubFile:
    """The file, from the machine if it is there, else from the hub; its content is that which the hub names.

    Args:
        reference: without a file: the checkpoint of the repository, which must be clear.

    Raises:
        HubError: it cannot be had, or written.
        DamagedError: what was served is not what the hub says it is; it has been removed.
    """
    brought = brought_by_hand(reference)
    if brought is not None and reference.revision is None and brought.is_file():
        return HubFile(brought, reference)
    if reference.file is None:
        reference = replace(reference, file=_only_checkpoint(reference))
    path = fetch(reference)
    _require_served(path, reference)
    return HubFile(path, replace(reference, revision=_commit(path, reference) or reference.revision))


def fetch(reference: HubReference) -> Path:
    """One file of a repository, as the client of the hub gives it.

    Raises:
        HubError: it cannot be had, or written.
    """
    from huggingface_hub import hf_hub_download

    assert reference.file is not None
    try:
        return Path(hf_hub_download(reference.repository, reference.file, revision=reference.revision))
    # The client's errors share no class, and those of its connection come from libraries that change with it.
    except Exception as error:
        explain(error, reference)


def files_of(reference: HubReference) -> list[str]:
    """Names of all files of a repository; offline, of those in the client's cache.

    Raises:
        HubError: the repository is not there, or out of reach.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return HfApi().list_repo_files(reference.repository, revision=reference.revision)
    except Exception as error:
        try:
            if _status(error) in (None, 500, 502, 503, 504):
                folder = Path(
                    snapshot_download(reference.repository, revision=reference.revision, local_files_only=True)
                )
                return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
        except (LocalEntryNotFoundError, OSError, ValueError):
            pass
        explain(error, reference)


def brought_by_hand(reference: HubReference) -> Path | None:
    """Return the path of a file that was brought by hand: `CACHE/checkpoints/OWNER/NAME/FILE`."""
    if reference.file is None:
        return None
    return default_cache() / "checkpoints" / reference.repository / reference.file


def _only_checkpoint(reference: HubReference) -> str:
    names = files_of(reference)
    if WEIGHTS_FILE in names:
        return WEIGHTS_FILE
    found = [name for name in names if name.endswith(_SUFFIXES)]
    if len(found) == 1:
        return found[0]
    if not found:
        there = ", ".join(names[:8]) or "nothing"
        raise HubError(f"{reference} holds no checkpoint ({' '.join(_SUFFIXES)}); found: {there}")
    choices = "\n".join(f"  {reference.repository}:{name}" for name in found[:20])
    raise HubError(f"{reference} holds {len(found)} checkpoints; say which:\n{choices}")


def _require_served(path: Path, reference: HubReference) -> None:
    """Compare a large file with the sha256 by which the client stores it; others have none."""
    blob = path.resolve()
    if not _SHA256.fullmatch(blob.name):
        return
    found = content_hash(blob)
    if found != blob.name:
        path.unlink(missing_ok=True)
        blob.unlink(missing_ok=True)
        raise DamagedError(
            f"{reference}: what was downloaded is not what the hub says it is (found sha256 {found}, expected "
            f"{blob.name}). It has been removed; run again to download it anew"
        )


def _commit(path: Path, reference: HubReference) -> str | None:
    """The commit in the path of a file in the client's cache, `.../snapshots/COMMIT/FILE`."""
    parts = path.parts[: -len(Path(reference.file or "").parts)]
    return parts[-1] if len(parts) > 1 and parts[-2] == "snapshots" else None


def explain(error: Exception, reference: HubReference, *, pushing: bool = False) -> NoReturn:
    """Raise HubError for what the client raised while it fetched from, or pushed to, a repository."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    status = _status(error)
    if isinstance(error, GatedRepoError) or (status in (401, 403) and not isinstance(error, RepositoryNotFoundError)):
        raise HubError(
            f"{reference}: the hub refuses access ({status}): the repository is gated or private. Ask for access at "
            f"{_address(reference)} and log in (`hf auth login`, or set HF_TOKEN)"
        ) from error
    if isinstance(error, RepositoryNotFoundError):
        raise HubError(
            f"there is no file or folder {reference.repository} here, and the hub at {_endpoint()} has no repository "
            f"of that name, or it is private and you are not logged in (HF_TOKEN)"
        ) from error
    if isinstance(error, RevisionNotFoundError):
        raise HubError(f"{reference.repository} on the hub has no revision {reference.revision}") from error
    if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        raise HubError(
            f"{reference.repository} on the hub has no file {reference.file}; leave the file out to have its only "
            f"checkpoint, or see {_address(reference)}"
        ) from error
    if isinstance(error, HFValidationError):
        raise HubError(f"{reference}: {error}") from error
    if _is_local(error):
        raise _unwritable(error, reference) from error
    if pushing:
        raise HubError(f"nothing was pushed to {reference}: {_reason(error)}") from error
    raise HubError(_out_of_reach(error, reference)) from error


def _out_of_reach(error: Exception, reference: HubReference) -> str:
    from huggingface_hub import constants

    size = f" ({reference.model.size})" if reference.model is not None else ""
    places = [str(place) for place in (brought_by_hand(reference), constants.HF_HUB_CACHE) if place is not None]
    advice = (
        f"Get {_address(reference)} on another machine and put it at {places[0]}, or pass the path of the file"
        if reference.file is not None
        else "Name the file (OWNER/NAME:FILE), or pass the path of a copy"
    )
    return (
        f"{reference}{size} is not on this machine and cannot be downloaded: {_reason(error)}. Looked in "
        f"{' and '.join(places)}. {advice}"
    )


def _reason(error: Exception) -> str:
    from huggingface_hub.errors import OfflineModeIsEnabled

    causes = list(_chain(error))
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in causes):
        return "the client is offline (HF_HUB_OFFLINE is set)"
    last = causes[-1]
    status = _status(error)
    what = f"status {status}" if status is not None else f"{type(last).__name__}: {str(last).splitlines()[0][:200]}"
    return f"the hub at {_endpoint()} gives no answer that can be used ({what})" if str(last) else f"{what}"


def _unwritable(error: Exception, reference: HubReference) -> HubError:
    from huggingface_hub import constants

    return HubError(
        f"{reference} could not be written to {constants.HF_HUB_CACHE} ({error}). Make room or correct the "
        "permissions, or name another folder by HF_HOME; nothing half-written was left"
    )


def _is_local(error: Exception) -> bool:
    """True if the disk of this machine failed."""
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EIO)
    return any(isinstance(cause, OSError) and cause.errno in codes for cause in _chain(error))


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error of the client, or its cause, carries."""
    for cause in _chain(error):
        response = getattr(cause, "response", None)
        if response is not None:
            return int(response.status_code)
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def _address(reference: HubReference) -> str:
    from huggingface_hub import hf_hub_url

    if reference.file is None:
        return f"{_endpoint()}/{reference.repository}"
    return hf_hub_url(reference.repository, reference.file, revision=reference.revision)
