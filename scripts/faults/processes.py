"""Faults of processes: kills at any instant, SIGTERM, a lost process, resume on other devices and processes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

from faults.frameworks import (
    DEVICES,
    STEPS,
    Failed,
    Framework,
    Result,
    finish,
    free_port,
    heartbeat,
    kill,
    must_equal,
    require,
    wait_for,
)

SLOW = "health.heartbeat_seconds=0.001"
"""So that the heartbeat shows every step."""
DOUBLE = ("precision.param_dtype=float64", "precision.compute_dtype=float64")
BOUND = 120
"""Seconds in which a run that lost a process must have ended."""


def killed_in_training(framework: Framework, kills: int = 2, seed: int = 0) -> str:
    """SIGKILL at random instants of training, several times; then the run goes on to its end."""
    draw, workdir, seen = random.Random(seed), framework.scratch / "killed", list[int]()
    for _ in range(kills):
        goal = max(framework.steps(workdir), default=0) + draw.randint(1, 4)
        if (workdir / "heartbeat.json").exists():
            (workdir / "heartbeat.json").unlink()
        process = framework.start(workdir, SLOW)
        wait_for(lambda goal=goal: heartbeat(workdir).get("step", 0) >= goal, process)
        time.sleep(draw.uniform(0, 0.02))
        done, running = heartbeat(workdir)["step"], process.poll() is None
        kill(process)
        seen += [done] if running else []
        saved = max(framework.steps(workdir), default=0)
        require(saved >= done // 2 * 2 - 2, f"step {done} was made, and the newest on disk is {saved}")
    require(seen, "no kill met a run: all of them had ended before")
    last = max(framework.steps(workdir), default=0)
    finish(framework.start(workdir)).must(0, f"continuing at step {last}" if last else "")
    framework.must_equal_reference(workdir)
    return f"at steps {seen}"


def killed_in_saving(framework: Framework, kills: int = 2) -> str:
    """SIGKILL while a checkpoint is being written: it must never count, and nothing before it may be lost."""
    workdir, met, tried = framework.scratch / "killed_saving", 0, 0
    folder = workdir / "checkpoints"

    def half_written() -> list[str]:
        names = os.listdir(folder) if folder.is_dir() else []
        return [name for name in names if "tmp" in name or name.endswith(".part")]

    # A step may have become whole between the look and the kill.
    while met < kills and tried < 3 * kills:
        process = framework.start(workdir, "checkpoint.every=1", SLOW)
        wait_for(lambda least=met: half_written() and len(framework.steps(workdir)) >= least, process)
        kill(process)
        met, tried = met + bool(half_written()), tried + 1
    require(met, f"none of {tried} kills left half a step behind")
    told = "which a run that was killed had not finished" if half_written() else ""
    finish(framework.start(workdir)).must(0, told)
    must_equal(framework.contents(workdir, STEPS), framework.contents(framework.reference(), STEPS))
    require(not half_written(), f"half-written steps stay: {half_written()}")
    return f"{tried} kills, {met} left half a step behind"


def terminated(framework: Framework) -> str:
    """SIGTERM saves first and ends well; the continued run logs what one without a break does."""
    for attempt in range(4):
        workdir = framework.scratch / f"terminated_{attempt}"
        process = framework.start(workdir, SLOW)
        wait_for(lambda workdir=workdir: heartbeat(workdir).get("step", 0) >= 3, process)
        process.send_signal(signal.SIGTERM)
        result = finish(process)
        stopped = max(framework.steps(workdir))
        if stopped < STEPS:
            break
    result.must(0, f"stopped at step {stopped}, checkpoint written")
    finish(framework.start(workdir)).must(0, f"continuing at step {stopped}")
    framework.must_equal_reference(workdir)
    return f"stopped at step {stopped}"


def start_two(
    framework: Framework, workdir: Path, *overrides: str, lost_after: int = 10
) -> list[subprocess.Popen[str]]:
    """Two processes of one run: by the command's options for JAX, by torchrun for PyTorch."""
    if framework.name == "torch":
        run = ("-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", "2", "--master-port")
        return [framework.start(workdir, *overrides, before=(*run, str(free_port())))]
    coordinator = f"127.0.0.1:{free_port()}"
    shared = ("--coordinator", coordinator, "--process-count", "2", "--lost-after", str(lost_after))
    # Only the first process finds its programs in the cache, and Gloo waits no longer than 30 s for the other.
    alike = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    return [
        framework.start(
            workdir,
            *overrides,
            options=(*shared, "--process-index", str(index)),
            devices=DEVICES // 2,
            environment=alike,
        )
        for index in range(2)
    ]


def start_at_step_four(framework: Framework, workdir: Path, *overrides: str) -> list[subprocess.Popen[str]]:
    """Two processes of one run that have come so far; Gloo gives up after 30 s, which a busy machine may need."""
    for attempt in range(3):
        processes = start_two(framework, workdir, *overrides, SLOW)
        try:
            wait_for(lambda processes=processes: heartbeat(workdir).get("step", 0) >= 4, processes[0])
            return processes
        except Failed as error:
            for process in processes:
                kill(process)
            if attempt == 2 or "Gloo context initialization failed" not in str(error):
                raise
    raise AssertionError


def lost_process(framework: Framework, victim: int = 1) -> str:
    """One of two processes is killed: the other ends with an error, soon, and the run can go on."""
    workdir = framework.scratch / f"lost_{victim}"
    processes = start_at_step_four(framework, workdir, "training.steps=100000")
    torch = framework.name == "torch"
    os.kill(_workers(processes[0].pid)[victim] if torch else processes[victim].pid, signal.SIGKILL)
    begin = time.monotonic()
    result = finish(processes[0 if torch else 1 - victim], BOUND)
    took = time.monotonic() - begin
    for process in processes:
        kill(process)
    if torch:
        result.must(1, "Signal 9 (SIGKILL)")
    else:
        _must_tell_loss(result, victim)
    saved = framework.steps(workdir)
    require(saved, "no checkpoint is left")
    finish(framework.start(workdir, f"training.steps={max(saved) + 1}")).must(0, f"continuing at step {max(saved)}")
    return f"status {result.status} after {took:.0f} s"


def _must_tell_loss(result: Result, victim: int) -> None:
    """Return the message of the JAX process that is left; see docs/scaling.md."""
    words = (f"process(es) {victim} of 2 lost", "a computation that all processes share did not finish")
    ended_by_jax = result.status == -signal.SIGABRT and "Terminating process because the JAX distributed" in result.text
    if victim == 0 and ended_by_jax:
        return
    result.must(4, "it continues at the last checkpoint")
    require(any(text in result.text for text in words), f"it said {result.text[-400:]}")


def lost_first_process(framework: Framework) -> str:
    """Lose the first process, through which the others found each other."""
    return lost_process(framework, victim=0)


def terminated_together(framework: Framework) -> str:
    """SIGTERM to one of two processes stops both at the same step, saved."""
    workdir = framework.scratch / "together"
    processes = start_at_step_four(framework, workdir, "training.steps=100000", "checkpoint.every=100000")
    target = _workers(processes[0].pid)[-1] if framework.name == "torch" else processes[1].pid
    os.kill(target, signal.SIGTERM)
    results = [finish(process) for process in processes]
    stopped = max(framework.steps(workdir), default=0)
    require(stopped >= 4, "nothing was saved")
    # Only the first process speaks.
    results[0].must(0, f"stopped at step {stopped}, checkpoint written")
    for result in results[1:]:
        result.must(0)
    goes_on = framework.start(workdir, f"training.steps={stopped + 1}")
    finish(goes_on).must(0, f"continuing at step {stopped}")
    return f"both at step {stopped}"


def other_devices(framework: Framework) -> str:
    """Half on one mesh and number of processes, half on another: equal to float tolerance in float64."""
    x64 = {"JAX_ENABLE_X64": "1"}
    half, workdir, whole = f"training.steps={STEPS // 2}", framework.scratch / "meshes", framework.scratch / "whole"
    finish(framework.start(whole, *DOUBLE, environment=x64)).must(0)
    if framework.name == "jax":
        finish(framework.start(workdir, *DOUBLE, half, environment=x64)).must(0)
        split = framework.start(workdir, *DOUBLE, "mesh.fsdp=2", devices=2, environment=x64)
        finish(split).must(0, f"continuing at step {STEPS // 2}")
        must_equal(framework.contents(workdir, STEPS), framework.contents(whole, STEPS), 1e-7)
    workdir = framework.scratch / "process_counts"
    os.environ["JAX_ENABLE_X64"] = "1"
    try:
        for process in start_two(framework, workdir, *DOUBLE, half):
            finish(process).must(0)
    finally:
        del os.environ["JAX_ENABLE_X64"]
    finish(framework.start(workdir, *DOUBLE, environment=x64)).must(0, f"continuing at step {STEPS // 2}")
    must_equal(framework.contents(workdir, STEPS), framework.contents(whole, STEPS), 1e-7)
    return "4 devices, then fsdp 2; 2 processes, then 1" if framework.name == "jax" else "2 processes, then 1"


def _workers(parent: int) -> list[int]:
    """Processes that a process started, the oldest first."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True, check=True)
    return sorted(int(pid) for pid in listed.stdout.split())
