"""Signs of life and of trouble: heartbeat, stalled input, kept batches, the lock, and traces."""

import json
import multiprocessing
import os
import time
import types

import numpy as np
import pytest

from voken_common.checkpoints.lock import RunLock, held
from voken_common.checkpoints.steps import Progress
from voken_common.config.schema.run import HealthConfig
from voken_common.data.errors import DataError
from voken_common.errors import CheckpointError, NonFiniteError, WorkdirError
from voken_common.processes import Processes
from voken_common.training.health import (
    Heartbeat,
    InputWatch,
    check_replayed,
    describe_replay,
    load_failed_batch,
    save_failed_batch,
)
from voken_common.training.log import RunLog
from voken_common.training.loop import RunLoop
from voken_common.training.profiling import Profiler


def beats(workdir):
    return json.loads((workdir / "heartbeat.json").read_text())


def test_heartbeat_says_where_the_run_is(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    heartbeat = Heartbeat(tmp_path, HealthConfig(heartbeat_seconds=10.0), images_per_step=4)
    heartbeat.beat(1)
    first = beats(tmp_path)
    assert (first["step"], first["phase"], first["pid"], first["images_per_second"]) == (
        1,
        "training",
        os.getpid(),
        None,
    )
    assert abs(first["unix_time"] - time.time()) < 60
    clock[0] += 9
    heartbeat.beat(2)
    assert beats(tmp_path)["step"] == 1, "not yet time"
    clock[0] += 1
    heartbeat.beat(6)
    assert (beats(tmp_path)["step"], beats(tmp_path)["images_per_second"]) == (6, 2.0)
    heartbeat.beat(6, "saving")
    assert beats(tmp_path)["phase"] == "saving", "a change is told at once"
    with pytest.raises(KeyError), heartbeat.lasting(lambda: 7):
        raise KeyError
    assert (beats(tmp_path)["step"], beats(tmp_path)["phase"]) == (7, "failed")
    assert [p.name for p in tmp_path.iterdir()] == ["heartbeat.json"]


class FakeSteps:
    """Steps that train nothing."""

    def __init__(self, seen):
        self.number, self._seen = 0, seen

    def step(self, batch):
        self._seen(batch)
        self.number += 1

    settle, means, progress, code_use = lambda _: False, lambda _: {}, lambda _: Progress(), lambda _: None


def loop(workdir, batches, seen=lambda _: None, total=1, save=lambda *_: None, alone=True):
    every = types.SimpleNamespace(every=10)
    training = types.SimpleNamespace(batch_size=4, log_every=10)
    config = types.SimpleNamespace(
        training=training, validation=every, checkpoint=every, health=HealthConfig(), data=None
    )
    task = types.SimpleNamespace(
        config=config,
        total_steps=total,
        shown=(),
        rates={},
        validates=False,
        logged=lambda means, _: means,
        on_disk=lambda: None,
    )
    profiler = Profiler(workdir, 0, lambda: None, lambda: None)
    checkpoints, processes = types.SimpleNamespace(save=save), Processes(count=1 if alone else 2)
    stop = types.SimpleNamespace(agreed=lambda: False)
    return RunLoop(task, FakeSteps(seen), batches, workdir, checkpoints, processes, stop, profiler).to_the_end()


def test_a_run_shows_itself_before_its_first_step(tmp_path):
    phases = []

    def seen(batch):
        phases.append((beats(tmp_path)["step"], beats(tmp_path)["phase"], batch))

    assert loop(tmp_path, iter(["batch"]), seen) == {}
    assert phases == [(0, "starting", "batch")]
    assert (beats(tmp_path)["step"], beats(tmp_path)["phase"]) == (1, "finished")


@pytest.mark.parametrize(
    ("good", "alone", "saved"), [(3, True, 1), (3, False, 0), (0, True, 0), (10, True, 1)], ids=str
)
def test_steps_are_saved_before_data_that_fails_ends_a_run_alone(tmp_path, good, alone, saved):
    def batches():
        yield from range(good)
        raise DataError("no more")

    saves = []
    with pytest.raises(DataError, match="no more"):
        loop(tmp_path, batches(), total=99, save=lambda *_: saves.append(1), alone=alone)
    # The tenth step is saved anyway.
    assert len(saves) == saved
    assert beats(tmp_path)["phase"] == "failed"


def test_heartbeat_that_cannot_be_written_is_told_once(tmp_path, caplog):
    (tmp_path / "file").touch()
    heartbeat = Heartbeat(tmp_path / "file", HealthConfig(heartbeat_seconds=1e-9), 1)
    heartbeat.beat(1)
    heartbeat.beat(2)
    assert caplog.text.count("heartbeat.json cannot be written") == 1
    assert "the run goes on without it" in caplog.text
    silent = Heartbeat(tmp_path / "elsewhere", HealthConfig(), 1, enabled=False)
    silent.beat(1)
    assert not (tmp_path / "elsewhere").exists()


def test_stalled_input_is_told_while_it_lasts(caplog):
    with InputWatch(HealthConfig(stalled_input_seconds=0.05), "Look there") as watch:
        with watch.waiting():
            pass
        assert not caplog.records
        with watch.waiting():
            deadline = time.monotonic() + 10
            while "stalled" not in caplog.text:
                assert time.monotonic() < deadline
                time.sleep(0.005)
        assert "the input goes on after" in caplog.text
    assert caplog.text.count("the input is stalled: the training loop has been waiting for data for ") == 1
    assert "(health.stalled_input_seconds is 0.05). Look there" in caplog.text


def test_kept_batches_come_back(tmp_path):
    batch = {"image": np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32), "label": np.arange(2)}
    path = save_failed_batch(tmp_path, 12, batch, ["total_loss"])
    assert path.name == "failed_batch_12.npz"
    step, again, terms = load_failed_batch(path)
    assert (step, terms) == (12, ["total_loss"])
    assert all(np.array_equal(again[name], batch[name]) for name in batch | again)
    assert save_failed_batch(tmp_path, 3, batch, [], (1, 2)).name == "failed_batch_3_process_1_of_2.npz"
    check_replayed(path, again, 2)
    with pytest.raises(CheckpointError, match=r"holds \[2\] samples, training.batch_size is 4: .*--set"):
        check_replayed(path, again, 4)
    text = describe_replay(path, 12, terms, 10, {"loss": 1.0, "grad": float("nan")})
    assert "broke step 12 (total_loss); here it meets the weights of step 10" in text
    assert text.count("<- not finite") == 1
    assert "All terms are finite here" in describe_replay(path, 12, terms, 10, {"loss": 1.0})


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"text"])
def test_a_batch_that_cannot_be_read_is_told(tmp_path, content):
    file = tmp_path / "x.npz"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"cannot be replayed \(.*expected a failed_batch_<step>.npz"):
        load_failed_batch(file)
    np.savez(file, step=1)
    with pytest.raises(CheckpointError, match="cannot be replayed"):
        load_failed_batch(file)


def test_a_batch_that_cannot_be_kept_is_told(tmp_path, caplog):
    (tmp_path / "file").touch()
    assert save_failed_batch(tmp_path / "file", 1, {}, []) is None
    assert "the batch of step 1 cannot be kept" in caplog.text


def test_the_error_names_batch_and_count():
    error = NonFiniteError(5, ["a", "b"], batch="x.npz", skipped=2)
    assert "step 5: not finite: a, b." in str(error)
    assert "after 2 skipped batch(es) (health.max_skipped)" in str(error)
    assert "--replay x.npz" in str(error)
    assert (error.step, error.terms) == (5, ["a", "b"])


def test_one_run_per_directory(tmp_path):
    workdir = tmp_path / "new" / "run"
    with RunLock(workdir):
        with pytest.raises(WorkdirError, match=rf"is in use by another run \(process {os.getpid()} on .*, started .*"):
            RunLock(workdir).__enter__()
        with pytest.raises(WorkdirError, match="is in use"), held(workdir, Processes()):
            pass
    with RunLock(workdir), held(tmp_path / "other", Processes()):
        pass
    with (
        pytest.raises(WorkdirError, match="the first process cannot use"),
        held(workdir, Processes(1, 2, any=lambda flag: True)),
    ):
        pass
    with held(workdir, Processes(1, 2)):
        assert (workdir / "run.lock").read_text() == "", "another process than the first holds nothing"


def hold_and_die(workdir):
    RunLock(workdir).__enter__()
    os._exit(0)


def test_a_lock_ends_with_its_process(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=hold_and_die, args=(tmp_path,))
    process.start()
    process.join()
    assert json.loads((tmp_path / "run.lock").read_text())["pid"] == process.pid, "left behind"
    with RunLock(tmp_path):
        assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()


def test_a_directory_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WorkdirError, match=r"cannot be written to \(.*; use another --workdir, or make it writable"):
        RunLock(tmp_path / "file" / "run").__enter__()


def test_a_lock_that_fails_for_another_reason_is_not_another_run(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("fcntl.flock", broken)
    with pytest.raises(WorkdirError, match=r"cannot be written to \(Input/output error\)"):
        RunLock(tmp_path).__enter__()


def test_the_rate_counts_steps_that_were_not_refused(tmp_path, monkeypatch):
    # Without a terminal there is no bar.
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    log = RunLog(tmp_path, total_steps=10, first_step=0, images_per_step=4)
    logged = []
    monkeypatch.setattr(log, "scalars", lambda step, values, prefix: logged.append(values["images_per_second"]))
    clock = iter((100.0, 102.0))
    monkeypatch.setattr("voken_common.training.log.time", types.SimpleNamespace(perf_counter=lambda: next(clock)))
    # Of five steps two are refused, one of them before the pause.
    for _ in range(3):
        log.advance()
    log.pause(2)
    for _ in range(2):
        log.advance()
    log.training(3, {}, ())
    assert (logged, log._bar.n) == ([1 * 4 / 2.0], 3)
    log.__exit__(None, None, None)


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, caplog):
    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with RunLock(tmp_path):
        assert "has no file locks" in caplog.text


@pytest.mark.parametrize(("steps", "made", "expected"), [(2, 10, [3, 5]), (5, 6, [3, 6]), (0, 10, []), (1, 2, [])])
def test_a_trace_covers_what_was_asked_for(tmp_path, steps, made, expected, caplog):
    events, number = [], 0
    with Profiler(
        tmp_path / "profile", steps, lambda: events.append(number), lambda: events.append(number)
    ) as profiler:
        for number in range(made):  # noqa: B007
            profiler.before_step()
        number = made
    assert events == expected
    assert ("no trace was made" in caplog.text) == (steps > 0 and not expected)


def test_a_trace_of_fewer_than_no_steps(tmp_path):
    with pytest.raises(ValueError, match="--profile -1: expected a number of steps, 0 for none"):
        Profiler(tmp_path, -1, lambda: None, lambda: None)
