"""Manners of the worker processes that Grain starts."""

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
    threading.Thread(target=_exit_with_parent, name="exit-with-parent", daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
