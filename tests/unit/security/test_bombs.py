"""Kilobytes that are made to exhaust memory, time or the stack are refused soon, with an error that says why."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.bombs import BOMBS

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    command = [sys.executable, "-m", "tests.support.bombs", str(tmp_path_factory.mktemp("bombs"))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused(outcomes, name):
    found = outcomes[name]
    assert found["outcome"].startswith("refused: "), found
    assert len(found["outcome"]) > len("refused: ValueError: ") + 10
    assert found["seconds"] < 5, found
    assert found["growth"] < 512 << 20, found
