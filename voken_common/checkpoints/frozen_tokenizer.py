"""Find the tokenizer of a generator's checkpoint."""

from __future__ import annotations

from pathlib import Path

from voken_common.checkpoints.steps import FOLDER
from voken_common.config.loading import AnyConfig
from voken_common.config.schema.generator import GeneratorConfig
from voken_common.errors import CheckpointError


def find_tokenizer(reference: str, checkpoint: str | Path) -> Path:
    """Return the checkpoint of the tokenizer that a generator's configuration names.

    It is looked for beside the generator first, so that both can be moved together, then where the configuration says.

    Args:
        reference: `tokenizer` of the configuration, relative to the current directory like every path there.
        checkpoint: of the generator: a work directory, a folder or file in it, or another file.

    Raises:
        CheckpointError: it is at neither place.
    """
    own = root_of(Path(checkpoint))
    beside, named = own.parent / Path(reference).name, Path(reference).expanduser()
    # In folders of their own the tokenizer may have the name of this generator, or of another one beside it.
    places = dict.fromkeys((named,) if beside == own or _is_generator(beside) else (beside, named))
    for place in places:
        if place.exists():
            return place
    raise CheckpointError(
        f"{checkpoint} is a generator whose tokenizer is {reference}: found nothing at "
        f"{' nor at '.join(map(str, places))}; put its checkpoint there, or name another place "
        "(--tokenizer, or `tokenizer` of a run's configuration)"
    )


def tokenizer_of_run(config: AnyConfig, workdir: Path) -> Path | None:
    """The tokenizer of a run: where its configuration says, else beside its work directory; None where it needs none.

    Raises:
        CheckpointError: it is not there.
    """
    if not isinstance(config, GeneratorConfig) or config.tokenizer is None:
        return None
    named = Path(config.tokenizer).expanduser()
    return named if named.exists() else find_tokenizer(config.tokenizer, workdir)


def root_of(checkpoint: Path) -> Path:
    """The work directory of a checkpoint in one, else the checkpoint itself."""
    path = checkpoint.resolve()
    for place in (path, path.parent):
        if place.name == FOLDER:
            return place.parent
    return path


def _is_generator(workdir: Path) -> bool:
    file = workdir / "config.yaml"
    return file.is_file() and "kind: generator" in file.read_text(errors="replace").splitlines()
