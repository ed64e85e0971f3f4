"""Manners of worker processes, and what reaches the user from them."""

import errno
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import time

import pytest

from voken_common.config.schema.data import DataConfig, SkimageConfig
from voken_common.data.errors import DataError, ReadError
from voken_common.data.pipeline import build_train_iterator
from voken_common.data.sources.skimage import Photographs

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


class Failing(Photographs):
    """A source that can never be read, for this reason."""

    def __init__(self, reason):
        super().__init__("all", crops=40)
        self.reason = reason

    def read(self, index):
        if self.reason == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise self.reason


def trained_in_a_worker(reason, seconds=0.0):
    data = DataConfig(train=SkimageConfig(region="all", crops=40), image_size=8, workers=1, retry_seconds=seconds)
    iterator = build_train_iterator(data, batch_size_per_process=4, seed=0, source=Failing(reason))
    try:
        next(iterator)
    finally:
        iterator.close()


@pytest.mark.slow
def test_a_data_error_of_a_worker_is_the_users_error():
    with pytest.raises(DataError, match="the tar changed") as caught:
        trained_in_a_worker(DataError("the tar changed"))
    assert (type(caught.value), str(caught.value)) == (DataError, "the tar changed")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_to_all_processes_leave_the_batches_coming(number):
    data = DataConfig(train=SkimageConfig(region="all", crops=40), image_size=8, workers=2)
    iterator = build_train_iterator(data, batch_size_per_process=4, seed=0)
    try:
        # One of each worker at least.
        shapes = {next(iterator)["image"].shape for _ in range(4)}
        workers = multiprocessing.active_children()
        assert len(workers) == 2
        for worker in workers:
            os.kill(worker.pid, number)
        time.sleep(1.0)
        # More than are ready.
        assert {next(iterator)["image"].shape for _ in range(12)} == shapes
    finally:
        start = time.monotonic()
        iterator.close()
    assert time.monotonic() - start < 20
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_worker_that_was_killed_is_told():
    with pytest.raises(DataError, match="Worker process was terminated unexpectedly with exit code -9") as caught:
        trained_in_a_worker("killed")
    assert "-9   the system killed it, mostly for want of memory: lower data.workers" in str(caught.value)
    assert str(caught.value).endswith("The same command continues from what it has saved last.")


@pytest.mark.slow
def test_a_worker_that_waits_for_a_store_tells_it_and_ends_with_a_clear_error(capfd):
    start = time.monotonic()
    with pytest.raises(ReadError, match=r"\[all\]#\d: cannot be read: .*Tried \d+ times in \d+ s") as caught:
        trained_in_a_worker(OSError(errno.ESTALE, os.strerror(errno.ESTALE)), seconds=6.0)
    assert "(data.retry_seconds 6)" in str(caught.value)
    assert 6 <= time.monotonic() - start < 60
    told = [line for line in capfd.readouterr().err.splitlines() if "trying again for up to 6 s" in line]
    assert len(told) == 1
