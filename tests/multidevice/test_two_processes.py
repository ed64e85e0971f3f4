"""Two processes of four simulated devices each train what one process of eight does, and a lost one ends the other."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.tiny import TINY, VQGAN, quantized_by, write
from tests.e2e.tiny_generator import FACTORIZED, generator_mapping, write_shards
from tests.multidevice.recorded import recording
from voken_common.config import load_any_config
from voken_common.run_log import RunLog
from voken_jax.checkpoint import find_step, read_meta
from voken_jax.trainer import train

ROOT = Path(__file__).resolve().parents[2]
DOUBLE = {"precision": {"param_dtype": "float64", "compute_dtype": "float64"}}
SHORT = {"training": {"batch_size": 8, "steps": 3, "log_every": 1}, "checkpoint": {"every": 2}}
# The smallest networks: what is tested is who holds and computes what.
TOKENIZERS = {
    "lfq": TINY | {key: VQGAN[key] for key in ("discriminator", "data")},
    "ibq": quantized_by("ibq", shard_codes=True),
}
TOKENIZERS["lfq"]["model"] = TINY["model"] | {"resolution": 8, "channel_multipliers": [1]}
MESHES = {"lfq": {"fsdp": 2}, "ibq": {"fsdp": 2, "model": 2}, "generator": {"fsdp": 2, "model": 2}}


def mapping_of(name, folder):
    if name != "generator":
        return TOKENIZERS[name] | SHORT | DOUBLE | {"mesh": MESHES[name]}
    write_shards(folder, FACTORIZED["vocabularies"])
    return generator_mapping(folder, FACTORIZED, **SHORT, **DOUBLE, mesh=MESHES[name])


def start(folder, file, *options, second=()):
    """Both processes of a run; `second` are further options of the second one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "JAX_ENABLE_X64": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax")}
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
    file = write(folder, mapping_of(name, folder))
    processes = start(folder, file)
    losses, config = {}, load_any_config(file)
    monkeypatch.setattr(RunLog, "training", recording(losses))
    metrics = train(config, folder / "one")
    results = finish(processes)
    assert [status for status, _ in results] == [0, 0], results[0][1] + results[1][1]
    assert "training on" in results[0][1]
    assert "training on" not in results[1][1], "only the first process speaks"
    found = [json.loads((folder / f"losses.{index}").read_text()) for index in range(2)]
    assert found[0] == found[1], "all processes know the same metrics"
    assert found[0].keys() == {"1", "2", "3"}
    for step, expected in losses.items():
        assert found[0][str(step)] == pytest.approx(expected, rel=1e-7, abs=1e-9)
    assert read_meta(find_step(folder / "two")).metrics == pytest.approx(metrics, rel=1e-6)

    longer = load_any_config(file, ["training.steps=4"])
    expected = train(longer, folder / "one"), dict(losses)
    losses.clear()
    assert train(longer, folder / "two") == pytest.approx(expected[0], rel=1e-6), "one process continues what two saved"
    assert losses == {4: pytest.approx(expected[1][4], rel=1e-7, abs=1e-9)}


def test_a_generator(tmp_path, monkeypatch, x64):
    compare("generator", tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lfq", "ibq"])
def test_a_tokenizer(name, tmp_path, monkeypatch, x64):
    compare(name, tmp_path, monkeypatch)


def started(folder, processes):
    """Wait until a run has saved its first step."""
    deadline = time.monotonic() + 240
    while not list((folder / "two" / "checkpoints").glob("[0-9]*/meta")):
        assert all(process.poll() is None for process in processes), finish(processes)
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_a_lost_process_ends_the_run_in_bounded_time(tmp_path):
    file = write(tmp_path, mapping_of("generator", tmp_path))
    processes = start(tmp_path, file, "--set", "training.steps=100000", "--lost-after", "15")
    started(tmp_path, processes)
    processes[1].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    (status, output), (other, _) = finish(processes, limit=90)
    assert (status, other) == (4, -signal.SIGKILL), output
    assert time.monotonic() - killed < 60
    assert "error: process(es) 1 of 2 lost: silent for 15 s (killed, out of memory" in output or (
        "a computation that all processes share did not finish" in output
    )
    assert "it continues at the last checkpoint" in output
    assert find_step(tmp_path / "two").name.isdecimal()


def test_a_process_that_fails_tells_the_other(tmp_path):
    file = write(tmp_path, mapping_of("generator", tmp_path))
    processes = start(tmp_path, file, second=["--set", f"data.train={tmp_path}/nowhere"])
    (first, told), (second, own) = finish(processes, limit=120)
    assert (first, second) == (4, 2)
    assert "error: no token shards in" in own
    assert "error: process 1 of 2 failed: no token shards in" in told
    assert "this is process 0, which ends too" in told
