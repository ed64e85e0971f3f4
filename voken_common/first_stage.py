"""Where the tokenizer of a generator's checkpoint lies."""

from __future__ import annotations

from pathlib import Path

from voken_common.checkpoints import FOLDER
from voken_common.errors import CheckpointError


def find_tokenizer(reference: str, checkpoint: str | Path) -> Path:
    """The checkpoint of the tokenizer that a generator's configuration names.

    It is looked for beside the generator first, so that both can be moved together, then where the configuration says.

    Args:
        reference: `tokenizer` of the configuration, relative to the current directory like every path there.
        checkpoint: of the generator: a work directory, a folder or file in it, or another file.

    Raises:
        CheckpointError: it is at neither place.
    """
    beside = root_of(Path(checkpoint)).parent / Path(reference).name
    places = dict.fromkeys((beside, Path(reference).expanduser()))
    for place in places:
        if place.exists():
            return place
    raise CheckpointError(
        f"{checkpoint} is a generator whose tokenizer is {reference}: found nothing at "
        f"{' nor at '.join(map(str, places))}; put its checkpoint there, or name another place with --tokenizer"
    )


def root_of(checkpoint: Path) -> Path:
    """The work directory of a checkpoint in one, else the checkpoint itself."""
    path = checkpoint.resolve()
    for place in (path, path.parent):
        if place.name == FOLDER:
            return place.parent
    return path
