"""The launch scripts for CUDA machines, Slurm and TPUs, up to the command that they would run."""

import itertools
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from tests.support.launching import SCRIPTS, launch
from voken_jax.train import parse as parse_jax
from voken_torch.train import parse as parse_torch

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="the launch scripts are for bash")

NAMES = ("launch_torch.sh", "launch_slurm.sh", "launch_tpu.sh")
WITHOUT = {"launch_torch.sh": {"NPROC_PER_NODE": "1"}, "launch_slurm.sh": {}, "launch_tpu.sh": {"TPU_NAME": "a"}}


def command_of(done):
    """(variables, words of the command)."""
    assert done.returncode == 0, done.stderr
    *variables, command = done.stdout.splitlines()
    return variables, shlex.split(command)


def values_of(words):
    """Option -> value of the words of a command."""
    return {word: value for word, value in itertools.pairwise(words) if word.startswith("-")}


@pytest.mark.parametrize("script", sorted(path.name for path in SCRIPTS.glob("launch_*.sh")))
def test_bash_can_read_it(script):
    subprocess.run(["bash", "-n", str(SCRIPTS / script)], check=True)


HOSTILE = 'é\'; touch CANARY; $(touch CANARY) `touch CANARY` \\ "x" & | *\n#.yaml'


@pytest.mark.parametrize("shell", [shell for shell in ("sh", "dash", "bash") if shutil.which(shell)])
@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_a_path_stays_one_word_in_every_shell(tmp_path, shell, locale):
    """The commands inside the command, as a node of Slurm and a host of a TPU run them."""
    (tmp_path / "bin").mkdir()
    for name in ("python", "exec-me"):
        (tmp_path / "bin" / name).write_text('#!/bin/sh\nfor word in "$@"; do printf "%s\\0" "$word"; done >&2\n')
        (tmp_path / "bin" / name).chmod(0o755)
    environment = {"LC_ALL": locale, "PATH": f"{tmp_path}/bin:/usr/bin:/bin", "HOME": str(tmp_path)}
    hosts = {"REMOTE_DIR": "~/it's here; touch CANARY", "LOG_DIR": "$(touch CANARY)", "REMOTE_PYTHON": "python"}
    place = tmp_path / "it's here; touch CANARY"
    place.mkdir()
    shutil.copy(tmp_path / "bin" / "python", place / "python")
    hosts["REMOTE_PYTHON"] = "./python"
    words = shlex.split(launch("launch_slurm.sh", "--config", HOSTILE, **environment).stdout)
    wrapped = values_of(words)["--wrap"].replace(str(SCRIPTS / "launch_slurm.sh"), "exec-me")
    words = shlex.split(launch("launch_tpu.sh", "--config", HOSTILE, TPU_NAME="slice", **hosts, **environment).stdout)
    remote = values_of(words)["--command"].replace("set -o pipefail && ", "")
    for command in (wrapped, remote):
        done = subprocess.run([shell, "-c", command], cwd=tmp_path, env=environment, capture_output=True, check=False)
        received = (done.stderr or done.stdout).decode().split("\0")
        assert received[received.index("--config") + 1] == HOSTILE
    assert not list(tmp_path.rglob("CANARY"))
    assert [path.name for path in (place / "$(touch CANARY)").iterdir()]


@pytest.mark.parametrize("name", ["-oProxyCommand=x", "a b", "a;b", "$(x)", ""])
def test_a_tpu_has_a_name(name):
    assert launch("launch_tpu.sh", "--config", "a", TPU_NAME=name).returncode == 2


@pytest.mark.parametrize("script", NAMES)
def test_help_explains_every_variable_that_is_read(script):
    done = launch(script, "--help")
    assert done.returncode == 0
    text = (SCRIPTS / script).read_text()
    read = set(re.findall(r"\$\{([A-Z][A-Z_]+):-", text)) - {"PYTHON"}
    unexplained = {name for name in read if not name.startswith("SLURM_") and name not in done.stdout}
    assert read
    assert not unexplained


@pytest.mark.parametrize("script", NAMES)
def test_a_configuration_is_needed(script):
    done = launch(script, **WITHOUT[script])
    assert done.returncode == 2
    assert done.stderr.startswith("error: --config is missing")
    assert f"see: scripts/{script} --help" in done.stderr


def test_torch_on_one_machine():
    done = launch("launch_torch.sh", "--config", "a file.yaml", CUDA_VISIBLE_DEVICES="0,1,4", OMP_NUM_THREADS="2")
    variables, words = command_of(done)
    assert variables == ["OMP_NUM_THREADS=2"]
    assert words[:3] == [sys.executable, "-m", "torch.distributed.run"]
    assert values_of(words) | {"--nnodes": "1", "--nproc-per-node": "3"} == values_of(words)
    options = parse_torch(words[words.index("voken_torch.train") + 1 :])
    assert (options.device, options.config) == ("cuda", "a file.yaml")


def test_torch_takes_machines_from_slurm(tmp_path):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$3" = "node[3-4]" ] && printf "node3\\nnode4\\n"\n')
    scontrol.chmod(0o755)
    slurm = {
        "SLURM_NNODES": "2",
        "SLURM_NODEID": "1",
        "SLURM_JOB_NODELIST": "node[3-4]",
        "PATH": f"{tmp_path}:/usr/bin:/bin",
    }
    _, words = command_of(launch("launch_torch.sh", "--config", "a", NPROC_PER_NODE="8", **slurm))
    expected = {"--nnodes": "2", "--node-rank": "1", "--master-addr": "node3", "--nproc-per-node": "8"}
    assert values_of(words) | expected == values_of(words)


def test_slurm_submits_itself():
    settings = {"NODES": "4", "GPUS_PER_NODE": "2", "PARTITION": "gpu", "TIME_LIMIT": "1:00:00", "REQUEUE": "1"}
    done = launch("launch_slurm.sh", "--config", "a file.yaml", SBATCH_EXTRA="--exclusive --mem=0", **settings)
    variables, words = command_of(done)
    assert variables == ["FRAMEWORK=jax", "NODES=4", "GPUS_PER_NODE=2"]
    assert words[0] == "sbatch"
    expected = {"--nodes": "4", "--ntasks-per-node": "2", "--gpus-per-node": "2", "--cpus-per-task": "8"}
    expected |= {"--partition": "gpu", "--time": "1:00:00", "--signal": "TERM@300"}
    assert values_of(words) | expected == values_of(words)
    assert {"--requeue", "--exclusive", "--mem=0"} <= set(words)
    inner = shlex.split(values_of(words)["--wrap"])
    assert inner == ["exec", str(SCRIPTS / "launch_slurm.sh"), "--config", "a file.yaml"]


def test_slurm_runs_jax_inside_an_allocation():
    inside = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "3", "GPUS_PER_NODE": "4"}
    _, words = command_of(launch("launch_slurm.sh", "--config", "a", "--set", "mesh.fsdp=4", **inside))
    assert words[0] == "srun"
    assert values_of(words) | {"--nodes": "3", "--ntasks-per-node": "4", "--cpus-per-task": "8"} == values_of(words)
    options = parse_jax(words[words.index("voken_jax.train") + 1 :])
    assert (options.config, options.overrides) == ("a", ["mesh.fsdp=4"])


def test_slurm_runs_torch_inside_an_allocation():
    inside = {"SLURM_JOB_ID": "7", "NODES": "2", "GPUS_PER_NODE": "4", "FRAMEWORK": "torch"}
    _, words = command_of(launch("launch_slurm.sh", "--config", "a", **inside))
    assert values_of(words) | {"--nodes": "2", "--ntasks-per-node": "1", "--cpus-per-task": "32"} == values_of(words)
    assert words[-3:] == [str(SCRIPTS / "launch_torch.sh"), "--config", "a"]


def test_tpu_hosts_run_the_command():
    settings = {"TPU_NAME": "slice", "ZONE": "us-central2-b", "XLA_FLAGS": "--one --two", "REMOTE_DIR": "/mnt/voken"}
    _, words = command_of(launch("launch_tpu.sh", "--config", "a file.yaml", **settings))
    assert words[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "slice"]
    assert values_of(words) | {"--worker": "all", "--zone": "us-central2-b"} == values_of(words)
    remote = shlex.split(values_of(words)["--command"])
    assert remote[:2] == ["cd", "/mnt/voken"]
    assert "XLA_FLAGS=--one --two" in remote
    start = remote.index("voken_jax.train")
    options = parse_jax(remote[start + 1 : remote.index("2>&1")])
    assert (options.distributed, options.config) == (True, "a file.yaml")


def test_a_tpu_host_runs_the_command_itself():
    _, words = command_of(launch("launch_tpu.sh", "--config", "a", TPU_NAME="local"))
    assert words == [sys.executable, "-m", "voken_jax.train", "--distributed", "--config", "a"]


@pytest.mark.parametrize(
    ("script", "environment", "expected"),
    [
        ("launch_torch.sh", {"DEVICE": "tpu"}, "DEVICE is 'tpu': expected cuda or cpu"),
        ("launch_torch.sh", {"DEVICE": "cpu"}, "NPROC_PER_NODE is not set: say how many processes"),
        ("launch_torch.sh", {"NPROC_PER_NODE": "0"}, "no GPU found: check nvidia-smi and CUDA_VISIBLE_DEVICES"),
        ("launch_torch.sh", {"NPROC_PER_NODE": "many"}, "expected a whole number from 0"),
        ("launch_torch.sh", {"NNODES": "2", "NPROC_PER_NODE": "1"}, "MASTER_ADDR is not set"),
        ("launch_slurm.sh", {"FRAMEWORK": "keras"}, "FRAMEWORK is 'keras': expected jax or torch"),
        ("launch_slurm.sh", {"GPUS_PER_NODE": "0"}, "GPUS_PER_NODE is '0': expected a whole number from 1"),
        ("launch_tpu.sh", {}, "TPU_NAME is not set: name a TPU"),
    ],
)
def test_what_is_missing_is_told(script, environment, expected):
    done = launch(script, "--config", "a", **environment)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert expected in done.stderr


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("launch_slurm.sh", "sbatch is not there: run this on a login node"),
        ("launch_tpu.sh", "gcloud is not there: install the Google Cloud CLI"),
    ],
)
def test_a_missing_tool_is_told(script, expected, tmp_path):
    # Nothing but what the scripts need: the tool itself may well be on this machine.
    for name in ("bash", "dirname", "basename"):
        (tmp_path / name).symlink_to(shutil.which(name))
    done = launch(script, "--config", "a", **WITHOUT[script], DRY_RUN="", PATH=str(tmp_path))
    assert done.returncode == 2
    assert expected in done.stderr
