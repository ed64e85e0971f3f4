"""The launch script for Ascend machines, up to the command that it would run."""

import functools
import shlex
import shutil
import sys

import pytest

from tests.support import launching

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="the launch script is for bash")
launch = functools.partial(launching.launch, "launch_ascend.sh")


def test_one_machine():
    done = launch("--config", "a file.yaml", "--set", "training.batch_size=8", ASCEND_RT_VISIBLE_DEVICES="0,1,4,5")
    assert done.returncode == 0, done.stderr
    *variables, command = done.stdout.splitlines()
    words = shlex.split(command)
    assert words[:3] == [sys.executable, "-m", "torch.distributed.run"]
    assert words[words.index("--nproc-per-node") + 1] == "4"
    assert words[words.index("--nnodes") + 1] == "1"
    assert words[-7:] == ["voken_torch.train", "--device", "npu", "--config", "a file.yaml", "--set"] + words[-1:]
    assert words[-1] == "training.batch_size=8"
    assert "HCCL_CONNECT_TIMEOUT=600" in variables


def test_one_of_several_machines():
    several = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234", "NPROC_PER_NODE": "8"}
    done = launch("--config=a.yaml", **several, OMP_NUM_THREADS="3", HCCL_CONNECT_TIMEOUT="1200")
    assert done.returncode == 0, done.stderr
    expected = "--nnodes 2 --node-rank 1 --nproc-per-node 8 --master-addr 10.0.0.1 --master-port 1234 -m voken_torch"
    assert expected in done.stdout
    assert done.stdout.splitlines()[:2] == ["OMP_NUM_THREADS=3", "HCCL_CONNECT_TIMEOUT=1200"]


def test_cann_is_sourced_where_it_is_not_set(tmp_path):
    (tmp_path / "set_env.sh").write_text("export ASCEND_RT_VISIBLE_DEVICES=${UNSET}0,1,2\n")
    done = launch("--config", "a.yaml", CANN_SET_ENV=str(tmp_path / "set_env.sh"))
    assert "--nproc-per-node 3 " in done.stdout
    done = launch("--config", "a.yaml", CANN_SET_ENV=str(tmp_path / "set_env.sh"), ASCEND_HOME_PATH="there")
    assert "no NPU found" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        ((), {}, "--config is missing"),
        (("--config", "a", "--device", "cpu"), {}, "--device is npu here"),
        (("--config", "a"), {"NNODES": "2"}, "MASTER_ADDR is not set"),
        (("--config", "a"), {"NNODES": "2", "MASTER_ADDR": "a"}, "NODE_RANK is not set"),
        (("--config", "a"), {"NNODES": "2", "MASTER_ADDR": "a", "NODE_RANK": "2"}, "expected 0 to 1"),
        (("--config", "a"), {"NNODES": "two"}, "NNODES is 'two': expected a whole number from 1"),
        (("--config", "a"), {"NPROC_PER_NODE": "0"}, "no NPU found"),
        (("--config", "a"), {"NPROC_PER_NODE": "1", "DRY_RUN": "", "CANN_SET_ENV": "nowhere"}, "nowhere is not there"),
    ],
)
def test_what_is_missing_is_told(arguments, environment, expected):
    done = launch(*arguments, **environment)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert expected in done.stderr


def test_help_explains_every_variable():
    text = launch("--help").stdout
    for name in ("NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "NPROC_PER_NODE", "ASCEND_RT_VISIBLE_DEVICES"):
        assert name in text
    for name in ("CANN_SET_ENV", "OMP_NUM_THREADS", "HCCL_CONNECT_TIMEOUT", "HCCL_EXEC_TIMEOUT", "HCCL_DETERMINISTIC"):
        assert name in text
