"""Two processes of four simulated devices each train what one process of eight does, and a lost one ends the other."""

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.multidevice.recorded import recording
from tests.support.tiny import TINY, VQGAN, quantized_by, write
from tests.support.tiny_generator import ADAPTIVE, FACTORIZED, generator_mapping, write_shards
from voken_common.config.loading import load_any_config
from voken_common.training.log import RunLog
from voken_jax.checkpoints.orbax import find_step
from voken_jax.training import run as trainer

ROOT = Path(__file__).resolve().parents[2]
DOUBLE = {"precision": {"param_dtype": "float64", "compute_dtype": "float64"}}
SHORT = {"training": {"batch_size": 8, "steps": 4, "log_every": 1}, "checkpoint": {"every": 2}}
# The smallest networks: what is tested is who holds and computes what.
TOKENIZERS = {
    "lfq": TINY | {key: VQGAN[key] for key in ("discriminator", "data")},
    "ibq": quantized_by("ibq", shard_codes=True),
}
TOKENIZERS["lfq"]["model"] = TINY["model"] | {"resolution": 8, "channel_multipliers": [1]}
GENERATORS = {"adaptive": ADAPTIVE, "factorized": FACTORIZED}
MESHES = {"lfq": {"fsdp": 2}, "ibq": {"fsdp": 2, "model": 2}, "adaptive": {"fsdp": 4}}
MESHES["factorized"] = {"fsdp": 2, "model": 2}


def mapping_of(name, folder):
    if name in TOKENIZERS:
        return TOKENIZERS[name] | SHORT | DOUBLE | {"mesh": MESHES[name]}
    network = GENERATORS[name]
    write_shards(folder, network["vocabularies"])
    # The one that always runs is spared the program of its validation.
    data = {} if name == "factorized" else {"data": {"validation": None}}
    # Schedules over the length of a run would make a longer one another run.
    constant = {"optimizer": {"schedule": {"kind": "constant"}, "weight_decay_end": 0.0}}
    return generator_mapping(folder, network, **SHORT, **DOUBLE, **data, **constant, mesh=MESHES[name])


def start(folder, file, *options, second=()):
    """Both processes of a run; `second` are further options of the second one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "JAX_ENABLE_X64": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "OMP_NUM_THREADS": "1"}
    # Only the first process would find its programs, and Gloo waits no longer than 30 s for the one that compiles.
    environment |= {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    command = [sys.executable, "-m", "tests.multidevice.recorded", str(folder / "losses"), "--config", str(file)]
    command += ["--workdir", str(folder / "two"), "--cpu-devices", "4", "--coordinator", f"127.0.0.1:{port}"]
    command += ["--process-count", "2", *options]
    return [
        subprocess.Popen(
            [*command, "--process-index", str(index), *(second if index else ())],
            cwd=ROOT,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]


def finish(processes, limit=300):
    """(exit status, error output) of each."""
    outputs = [process.communicate(timeout=limit)[1] for process in processes]
    return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]


def compare(name, folder, monkeypatch):
    """Three steps of two processes, then one of one process, against four of one process."""
    file = write(folder, mapping_of(name, folder))
    processes = start(folder, file, "--set", "training.steps=3")
    losses, config = {}, load_any_config(file)
    monkeypatch.setattr(RunLog, "training", recording(losses))
    monkeypatch.setattr(trainer, "build", functools.cache(trainer.build))
    metrics = trainer.train(config, folder / "one")
    expected = dict(losses)
    results = finish(processes)
    assert [status for status, _ in results] == [0, 0], results[0][1] + results[1][1]
    assert "training on" in results[0][1]
    assert "training on" not in results[1][1], "only the first process speaks"
    found = [json.loads((folder / f"losses.{index}").read_text()) for index in range(2)]
    assert found[0] == found[1], "all processes know the same metrics"
    assert {int(step): values for step, values in found[0].items()} == {
        step: pytest.approx(expected[step], rel=1e-7, abs=1e-9) for step in (1, 2, 3)
    }
    losses.clear()
    assert trainer.train(config, folder / "two") == pytest.approx(metrics, rel=1e-6), "one continues what two saved"
    assert losses == {4: pytest.approx(expected[4], rel=1e-7, abs=1e-9)}


@pytest.mark.parametrize(
    "name", ["adaptive", *(pytest.param(name, marks=pytest.mark.slow) for name in ("factorized", "lfq", "ibq"))]
)
def test_two_processes_train_as_one(name, tmp_path, monkeypatch, x64):
    compare(name, tmp_path, monkeypatch)


def started(folder, file, *options):
    """Both processes of a run that has saved its first step.

    On a machine that has other things to do one process may come to Gloo 30 s before the other, which gives up then.
    """
    for _ in range(3):
        processes, deadline = start(folder, file, *options), time.monotonic() + 400
        while all(process.poll() is None for process in processes):
            if list((folder / "two" / "checkpoints").glob("[0-9]*/meta")):
                return processes
            assert time.monotonic() < deadline, "no step was saved"
            time.sleep(0.1)
        ended = finish(processes)
        assert any("Gloo context initialization failed" in output for _, output in ended), ended
    raise AssertionError("the processes did not find each other three times")


@pytest.mark.slow
def test_a_lost_process_ends_the_run_in_bounded_time(tmp_path):
    lost_after = 30
    file = write(tmp_path, mapping_of("adaptive", tmp_path))
    processes = started(tmp_path, file, "--set", "training.steps=100000", "--lost-after", str(lost_after))
    processes[1].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    (status, output), (other, _) = finish(processes, limit=lost_after + 120)
    assert (status, other) == (4, -signal.SIGKILL), output
    assert time.monotonic() - killed < lost_after + 60
    assert f"error: process(es) 1 of 2 lost: silent for {lost_after} s (killed, out of memory" in output or (
        "a computation that all processes share did not finish" in output
    )
    assert "it continues at the last checkpoint" in output
    assert find_step(tmp_path / "two").name.isdecimal()


def test_a_process_that_fails_tells_the_other(tmp_path):
    file = write(tmp_path, mapping_of("adaptive", tmp_path))
    processes = start(tmp_path, file, second=["--set", f"data.train={tmp_path}/nowhere"])
    (first, told), (second, own) = finish(processes, limit=120)
    assert (first, second) == (4, 2)
    assert "error: no token shards in" in own
    assert "error: process 1 of 2 failed: no token shards in" in told
    assert "this is process 0, which ends too" in told
