"""The fuzz command finds nothing; fuzzing of tars, images, steps and torch files beside their own tests."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def fuzzed(count):
    command = [sys.executable, "scripts/fuzz_readers.py", "--count", str(count)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert len(results) == 6
    for found in results:
        assert 0 < found["read"] < count, "some files still read, and some do not"


@pytest.mark.slow
def test_mutated_files_of_every_kind():
    fuzzed(300)
