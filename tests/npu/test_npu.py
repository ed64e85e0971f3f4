"""PyTorch training on a simulated NPU, in other processes: a device once registered stays for the whole process."""

import sys
from pathlib import Path

import pytest

INSIDE = Path(__file__).parent / "inside"
PYTEST = (sys.executable, "-m", "pytest", "--quiet", "--noconftest", "-p", "no:cacheprovider")


@pytest.mark.parametrize("file", sorted(path.name for path in INSIDE.glob("check_*.py")))
def test_inside(run_on_npu, tmp_path, file):
    output = run_on_npu(*PYTEST, "--basetemp", tmp_path / "inside", "-o", "python_files=check_*.py", INSIDE / file)
    assert " passed" in output
