"""What a batch that broke a step does to the newest checkpoint: `python -m voken_jax.train ... --replay FILE`."""

from __future__ import annotations

from pathlib import Path

from voken_common.checkpoints.frozen_tokenizer import tokenizer_of_run
from voken_common.config.loading import AnyConfig
from voken_common.errors import CheckpointError
from voken_common.training.health import check_replayed, describe_replay, load_failed_batch
from voken_jax.checkpoints.orbax import Checkpoints
from voken_jax.training.run import build, open_data


def replay(config: AnyConfig, workdir: Path, path: Path) -> dict[str, float]:
    """Run one step on a kept batch and print all its terms; nothing is written.

    Args:
        config: of the run.
        workdir: its work directory.
        path: a `failed_batch_<step>.npz`.

    Returns:
        The metrics of the step.

    Raises:
        CheckpointError: no such batch, or no good checkpoint to replay it on.
    """
    step, batch, terms = load_failed_batch(path)
    check_replayed(path, batch, config.training.batch_size)
    iterator = open_data(config)
    try:
        per_epoch = -(-len(iterator.source) // config.training.batch_size)
        task = build(config, per_epoch, tokenizer_of_run(config, workdir))
        checkpoints = Checkpoints(workdir, config.checkpoint)
        try:
            latest = checkpoints.latest_step()
            if latest is None:
                raise CheckpointError(f"{workdir} holds no checkpoint, on whose weights {path} could be replayed")
            state = task.from_disk(checkpoints.restore(task.abstract, iterator))
        finally:
            checkpoints.close()
    finally:
        iterator.close()
    _, values, _ = task.step(state, task.place(batch))
    metrics = {name: float(value) for name, value in values.items()}
    print(describe_replay(path, step, terms, latest, metrics))
    return metrics
