"""Behaviour of worker processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def initialize_worker(index: int, count: int) -> None:
    """Run first in worker `index` of `count`: leave Ctrl-C to the main process, and never outlive it.

    A terminal sends Ctrl-C to all processes of the run; workers that died of it would fail the step that the main
    process still wants to finish before it saves. A main process that is killed outright cannot stop its workers.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_freed_memory()
    threading.Thread(target=_exit_with_parent, name="exit-with-parent", daemon=True).start()


def initialize_training_worker(index: int, count: int) -> None:
    """As `initialize_worker`, and leave SIGTERM to the main process, too.

    A scheduler sends it to every process of a job, and the main process may still wait for the batch after which it
    saves. Grain ends its workers by other means.
    """
    initialize_worker(index, count)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def keep_freed_memory() -> None:
    """Let the C library keep the memory of one image for the next one.

    It would otherwise give it back to the system and ask for it again, page by page, for every image, which can take as
    long as decoding it. Freeing one large block raises what glibc keeps to twice its size; other libraries ignore it.
    """
    block = bytearray(31 << 20)
    del block


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
