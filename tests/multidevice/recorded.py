"""Train in a process of its own, one of several: `python -m tests.multidevice.recorded LOSSES.json ARGUMENTS...`."""

import json
import sys
from pathlib import Path

import jax

from voken_common.training.log import RunLog
from voken_jax.parallel import distributed
from voken_jax.train import main


def recording(losses):
    """A stand-in for RunLog.training that keeps what is logged."""

    def training(log, step, values, shown):
        losses[step] = dict(values)

    return training


if __name__ == "__main__":
    losses = {}
    RunLog.training = recording(losses)
    status = main(sys.argv[2:])
    Path(f"{sys.argv[1]}.{jax.process_index()}").write_text(json.dumps(losses))
    sys.exit(distributed.leave(status))
