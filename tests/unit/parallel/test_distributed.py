"""How JAX processes find each other, and what is told when they cannot."""

import argparse
import logging

import jax
import pytest

from voken_common.commands.train import add_distributed
from voken_common.processes import Processes
from voken_jax.parallel import distributed
from voken_jax.train import main
from voken_jax.training.stop import PreemptionStop

VARIABLES = ("SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_STEP_NODELIST", "OMPI_COMM_WORLD_SIZE")


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No cluster around."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def initialized(monkeypatch):
    """What `jax.distributed.initialize` is called with; it does nothing, and the loggers stay as they are."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *places, **limits: calls.append((places, limits)))
    monkeypatch.setattr(logging.getLogger("jax"), "level", logging.getLogger("jax").level)
    return calls


def options_of(*arguments):
    parser = argparse.ArgumentParser()
    add_distributed(parser)
    return parser.parse_args(arguments)


def test_a_single_process_joins_nobody(initialized):
    assert not distributed.join(options_of())
    with distributed.session(options_of()):
        pass
    assert not initialized
    assert distributed.gather_objects("mine") == []
    assert distributed.leave(3) == 3, "nothing to end"
    assert not distributed.is_loss(jax.errors.JaxRuntimeError("INTERNAL: alone"))


def test_by_hand(initialized):
    place = ("--coordinator", "10.0.0.1:1234", "--process-count", "4", "--process-index", "2")
    distributed.join(options_of(*place, "--lost-after", "60"))
    ((places, limits),) = initialized
    assert places == ("10.0.0.1:1234", 4, 2)
    assert limits["heartbeat_timeout_seconds"] > 60, "our own watch, which names the process, comes first"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_NODELIST": "a"}, None),
        # An interactive allocation: tasks are there for srun to start, this process is none of them.
        ({"SLURM_NTASKS": "8"}, None),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "3", "SLURM_STEP_NODELIST": "node[1-2]"}, "Slurm"),
        (
            {
                "SLURM_NTASKS": "8",
                "SLURM_STEP_NUM_TASKS": "1",
                "SLURM_PROCID": "0",
                "SLURM_STEP_NODELIST": "node1",
            },
            None,
        ),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI"),
    ],
)
def test_from_the_environment(variables, expected, initialized, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert distributed.environment() == expected
    distributed.join(options_of())
    assert len(initialized) == (expected is not None)
    if expected:
        assert initialized[0][0] == (None, None, None), "JAX reads the rest itself"


def test_when_told_that_there_is_an_environment(initialized):
    distributed.join(options_of("--distributed"))
    assert initialized[0][0] == (None, None, None)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--coordinator", "a:1"], "--coordinator a:1, --process-count None and --process-index None go together"),
        (["--process-count", "2", "--process-index", "0"], "give all three"),
        (
            ["--coordinator", "a", "--process-count", "2", "--process-index", "0"],
            "'a': expected HOST:PORT, for example",
        ),
    ],
)
def test_options_that_do_not_go_together(arguments, expected, tmp_path, capsys):
    from tests.support.tiny import write

    assert main(["--config", str(write(tmp_path)), "--workdir", str(tmp_path / "run"), *arguments]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert expected in message
    assert not (tmp_path / "run").exists()


def test_several_processes_stop_at_one_step_though_a_number_comes_again(monkeypatch):
    asked = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        "voken_jax.training.stop.multihost_utils.reached_preemption_sync_point",
        lambda step: asked.append(step) or step == 4,
    )
    stop = PreemptionStop(Processes())
    # The third step was refused, which is found out at the fifth: calls are counted, not the numbers of steps.
    assert [stop.agreed() for _ in (3, 4, 5, 3)] == [False, False, False, True]
    assert asked == [1, 2, 3, 4]


def test_processes_that_do_not_come_are_told(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("DEADLINE_EXCEEDED: Barrier timed out\nmore")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    monkeypatch.setattr(logging.getLogger("jax"), "level", logging.getLogger("jax").level)
    place = ("--coordinator", "10.0.0.1:1234", "--process-count", "4", "--process-index", "2")
    with pytest.raises(distributed.DistributedError) as raised:
        distributed.join(options_of(*place))
    message = str(raised.value)
    assert message.startswith("the processes cannot be joined by what the command line gives: DEADLINE_EXCEEDED")
    assert "more" not in message
    assert "whose port has to be free on process 0 and reachable from all others" in message


def test_what_a_lost_process_causes(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    lost = jax.errors.JaxRuntimeError("UNAVAILABLE: Connection closed by peer\nmore")
    assert distributed.is_loss(lost)
    told = ValueError("step 4 cannot be written")
    told.__cause__ = lost
    assert distributed.is_loss(told)
    assert not distributed.is_loss(ValueError("no such file"))
    assert distributed.is_loss(ValueError("UNKNOWN: Gloo AllGather failed: [pair.cc:547] Connection closed by peer"))
    message = distributed.describe_lost(lost)
    assert "process 0 of 2: a computation that all processes share did not finish" in message
    assert "(UNAVAILABLE: Connection closed by peer). Run the same command on all of them again" in message
