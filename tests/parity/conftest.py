"""Cases are found by their `kind`: a test module lists the kinds it covers in KINDS and takes the fixture `case`.

Kinds in its SLOW compile for minutes: `make parity` runs them, `make test` does not.
"""

import ast
from pathlib import Path

import pytest

from tests.support.golden_cases import load_cases


def pytest_generate_tests(metafunc):
    if "case" not in metafunc.fixturenames:
        return
    kinds = getattr(metafunc.function, "kinds", None) or metafunc.module.KINDS
    cases = [c for c in load_cases(metafunc.config.getoption("--golden")).values() if c.kind in kinds]
    slow = getattr(metafunc.module, "SLOW", ())
    marked = [pytest.param(c, marks=pytest.mark.slow) if c.kind in slow else c for c in cases]
    metafunc.parametrize("case", marked, ids=[c.name for c in cases])


def covered_kinds():
    """Kinds named by the KINDS of any test module here."""
    kinds = set()
    for path in Path(__file__).parent.glob("test_*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "KINDS":
                kinds |= set(ast.literal_eval(node.value))
    return kinds


def pytest_terminal_summary(terminalreporter, config):
    missing = {}
    for case in load_cases(config.getoption("--golden")).values():
        if case.kind not in covered_kinds():
            missing.setdefault(case.kind, []).append(case.name)
    if missing:
        terminalreporter.section("golden kinds without a test yet")
        for kind, names in sorted(missing.items()):
            terminalreporter.write_line(f"{kind}: {', '.join(names)}")


@pytest.fixture(params=["float64", "float32"])
def precision(request):
    """Both number formats a forward case must hold in."""
    import jax

    with jax.enable_x64(request.param == "float64"):
        yield request.param
