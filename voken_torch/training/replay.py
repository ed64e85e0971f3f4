"""What a batch that broke a step does to the newest checkpoint: `python -m voken_torch.train ... --replay FILE`."""

from __future__ import annotations

import math
from pathlib import Path

from voken_common.checkpoints.frozen_tokenizer import tokenizer_of_run
from voken_common.config.loading import AnyConfig
from voken_common.errors import CheckpointError, NonFiniteError
from voken_common.training.health import check_replayed, describe_replay, load_failed_batch
from voken_torch.checkpoints.torch import Checkpoints
from voken_torch.device.runtime import Runtime
from voken_torch.training.run import build, open_data


def replay(config: AnyConfig, workdir: Path, path: Path, runtime: Runtime | None = None) -> dict[str, float]:
    """Run one step on a kept batch and print its terms; nothing is written.

    Args:
        config: of the run.
        workdir: its work directory.
        path: a `failed_batch_<step>.npz`.
        runtime: the device; the CPU by default.

    Returns:
        The metrics of the step; where it is refused again, those that are not finite.

    Raises:
        CheckpointError: no such batch, or no good checkpoint to replay it on.
    """
    step, batch, terms = load_failed_batch(path)
    check_replayed(path, batch, config.training.batch_size)
    iterator = open_data(config)
    try:
        per_epoch = -(-len(iterator.source) // config.training.batch_size)
        task = build(config, per_epoch, runtime or Runtime(), tokenizer_of_run(config, workdir))
        checkpoints = Checkpoints(workdir, config.checkpoint)
        latest = checkpoints.latest_step()
        if latest is None:
            raise CheckpointError(f"{workdir} holds no checkpoint, on whose weights {path} could be replayed")
        checkpoints.restore(task.state, iterator)
    finally:
        iterator.close()
    try:
        metrics = {name: float(value) for name, value in task.step(batch).items()}
    except NonFiniteError as error:
        metrics = dict.fromkeys(error.terms, math.nan)
    print(describe_replay(path, step, terms, latest, metrics))
    return metrics
