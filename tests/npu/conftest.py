"""Processes that see a simulated NPU, where torch_npu would provide a real one."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.npu.build import build, compiler

ROOT = Path(__file__).resolve().parents[2]
SIMULATED = Path(__file__).parent / "simulated"


@pytest.fixture(scope="session")
def npu_environment():
    """Environment variables of a process whose `torch_npu` is the simulated one."""
    if compiler() is None:
        pytest.skip("the simulated NPU needs a C++ compiler: g++, or the one that CXX names")
    path = os.pathsep.join([str(SIMULATED), str(ROOT)])
    return {**os.environ, "PYTHONPATH": path, "SIMULATED_NPU": str(build()), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def run_on_npu(npu_environment):
    """Run a command to its successful end and return its output."""

    def run(*command):
        process = subprocess.Popen(
            list(map(str, command)),
            cwd=ROOT,
            env=npu_environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=240)
        except BaseException:
            # The processes that it started, too.
            os.killpg(process.pid, signal.SIGKILL)
            raise
        assert process.returncode == 0, f"exit status {process.returncode}, output:\n{output}"
        return output

    return run
