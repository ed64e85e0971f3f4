"""Checkpoints of two processes: the first one writes, verifies and drops; both know of it, and of a failed write."""

import multiprocessing
import os
import pickle
import socket
import time

import pytest
import torch

from tests.unit.checkpoints.test_checkpoint import state_of
from tests.unit.checkpoints.test_retention import ONE, JaxRun, TorchRun
from voken_common.errors import CheckpointError
from voken_torch.checkpoints import torch as torch_checkpoint
from voken_torch.device import runtime as device

LIMIT = 240


def error_of(function):
    try:
        function()
    except CheckpointError as error:
        return str(error)
    return None


def steps_of(run):
    """What lies there, before the first process goes on to write."""
    steps = run.steps()
    torch.distributed.barrier()
    return steps


def torch_process(rank, port, folder):
    """One step dropped, one damaged on the disk, one that cannot be written."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    device.start("cpu")
    with pytest.MonkeyPatch.context() as patch:
        run = TorchRun(folder, ONE, patch, folder / f"settings_{rank}")
        run.save(1)
        run.save(2)
        dropped = steps_of(run)
        run.save_damaged(3)
        latest = run.checkpoints.recover()
        kept = steps_of(run)

        def full(*_):
            raise OSError(28, "No space left on device")

        patch.setattr(torch_checkpoint, "_save", full)
        found = dropped, latest, kept, error_of(lambda: run.save(4)), steps_of(run)
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(found))
    torch.distributed.destroy_process_group()


def jax_process(rank, port, folder):
    """One step dropped, and one damaged on the disk, with and without asynchronous saving."""
    import jax
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    jax.config.update("jax_platforms", "cpu")
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank)
    everywhere = NamedSharding(Mesh(np.array(jax.devices()), ("all",)), PartitionSpec())

    class Run(JaxRun):
        def save(self, step, metrics=None):
            arrays = jax.tree.map(np.asarray, state_of(step))
            state = jax.tree.map(
                lambda a: jax.make_array_from_callback(a.shape, everywhere, lambda where: a[where]), arrays
            )
            self.checkpoints.save(state, self.config, self._iterator, metrics or {})

    found = []
    for name, backend in (("waiting", "cpu"), ("asynchronous", "an accelerator")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("jax.default_backend", lambda name=backend: name)
            run = Run(folder / name, ONE, patch, folder / f"settings_{rank}")
            run.save(1)
            run.save(2)
            run.save_damaged(3)
            run.close()
            kept = run.steps()
            run = Run(folder / name, ONE, patch, folder / f"settings_{rank}")
            latest = run.checkpoints.recover()
            run.save(3)
            run.close()
            found.append((kept, latest, run.steps()))
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(found))


def results_of(process, folder):
    """What both processes found, the first one's first."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for rank in range(2):
        # Both write their configuration.
        (folder / f"settings_{rank}").mkdir()
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=process, args=(rank, port, folder), daemon=True) for rank in range(2)]
    for one in processes:
        one.start()
    deadline = time.monotonic() + LIMIT
    while any(one.exitcode is None for one in processes) and not any(one.exitcode for one in processes):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert [one.exitcode for one in processes] == [0, 0]
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")
def test_both_processes_hear_of_a_failed_write(tmp_path):
    first, second = results_of(torch_process, tmp_path)
    dropped, latest, kept, error, after = first
    assert (dropped, latest, kept, after) == ([2], 2, [2], [2])
    assert "step 4 could not be written to " in error
    assert "No space left on device" in error
    assert second == first, "the same, to the letter"


@pytest.mark.slow
def test_both_processes_know_what_was_dropped(tmp_path):
    first, second = results_of(jax_process, tmp_path)
    assert first == [([2, 3], 2, [3])] * 2
    assert second == first
