"""The faults that need no process of their own, made for real in both frameworks; `make faults` makes all of them."""

import importlib.util
import sys
from pathlib import Path

import jax
import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def matrix(monkeypatch):
    """The script as a module."""
    # Else the script would say how many devices there are, for all tests after it as well.
    assert len(jax.devices()) == 8
    monkeypatch.syspath_prepend(str(SCRIPTS))
    spec = importlib.util.spec_from_file_location("fault_matrix", SCRIPTS / "fault_matrix.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for name in [name for name in sys.modules if name.partition(".")[0] == "faults"]:
        del sys.modules[name]


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_quick_faults(matrix, framework, capfd):
    quick = sum(fault.quick for fault in matrix.FAULTS)
    status = matrix.main(["--quick", "--framework", framework])
    lines = capfd.readouterr().out.strip().splitlines()
    absent = sum(" not here " in line for line in lines)
    assert status == 0, "\n".join(lines)
    assert lines[-1] == f"{quick - absent} passed, 0 failed"
    assert absent <= 1, "only a full disk takes the right to mount one"
    assert quick >= 5


def test_a_fault_that_is_not_survived_is_told(matrix, capfd, monkeypatch):
    def lost(framework):
        raise matrix.Failed("all is lost")

    monkeypatch.setattr(matrix, "FAULTS", (matrix.Fault("end", lost), matrix.Fault("crash", lambda _: 1 / 0)))
    assert matrix.main(["--framework", "torch"]) == 1
    lines = capfd.readouterr().out.strip().splitlines()
    assert "all is lost" in lines[0]
    assert "FAILED" in lines[0]
    assert any("ZeroDivisionError" in line for line in lines)
    assert lines[-1] == "0 passed, 2 failed"
    assert matrix.main(["--only", "nothing"]) == 2
