"""Processes that see a simulated NPU, where torch_npu would provide a real one."""

import os
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


@pytest.fixture
def run_on_npu(npu_environment):
    """Run a command to its end and return it finished; its exit status must be the expected one."""

    def run(*command, status=0, **environment):
        done = subprocess.run(
            list(map(str, command)),
            cwd=ROOT,
            env={**npu_environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == status, f"exit status {done.returncode}, output:\n{done.stdout}"
        return done.stdout

    return run
