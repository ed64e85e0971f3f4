"""Manners of worker processes."""

import platform
import subprocess
import sys

import pytest

CODE = """
import resource, sys
from voken_common.data.workers import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        images = [bytes(700_000) + b"x" for _ in range(4)]
        del images
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 50

first = faults()
keep_freed_memory()
faults()
print(first, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what it does is glibc's")
def test_freed_memory_is_kept_for_the_next_image():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    before, after = map(float, done.stdout.split())
    assert before > 300
    assert after < 30
