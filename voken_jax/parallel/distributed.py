"""Processes of one JAX run: they find each other, and all of them end when one fails or is lost.

Every host (or every GPU, under Slurm) runs the same command. They are joined before JAX touches a device: by
`--coordinator`, or from the environment that started them. Afterwards `jax.devices()` are those of all processes.

A process that fails tells the others why before it ends, and they end within seconds. One that is lost without a word
(killed, out of memory, a host that is gone) is noticed by the first process when it has been silent for `--lost-after`
seconds, and by JAX's coordination service somewhat later, should the first process not come to it. When the first
process itself is lost, that service is lost with it, and JAX aborts the others at once, with a trace of its own: its
client polls for errors and knows no other answer (jaxlib takes a callback, and cannot call one that is Python's).
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import pickle
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
import numpy as np
from jax._src import distributed as _runtime
from jax.experimental import multihost_utils

from voken_common.errors import UnavailableError
from voken_common.processes import Processes

logger = logging.getLogger("voken")

LOST = 4
"""Exit status of a process that ends because another one failed or was lost."""
_FAILED, _ALIVE = "voken/failed", "voken/alive"
_POLL_SECONDS = 1.0
_AGAIN = "Run the same command on all of them again: it continues at the last checkpoint"
_SERVICE_WAITS_LONGER = 20
"""Seconds that JAX's own watch is behind ours, whose message names the process."""


class DistributedError(UnavailableError):
    """Processes that cannot be joined; the message says what is missing."""


def environment() -> str | None:
    """Return the launcher that started this process with others, if its environment says so."""
    found = os.environ.get
    # In the shell of an interactive allocation SLURM_NTASKS is what srun would start, and the step is the shell alone.
    tasks = int(found("SLURM_STEP_NUM_TASKS", found("SLURM_NTASKS", "1")))
    if tasks > 1 and "SLURM_PROCID" in os.environ and "SLURM_STEP_NODELIST" in os.environ:
        return "Slurm"
    if int(found("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        return "Open MPI"
    return None


def join(options: argparse.Namespace) -> bool:
    """Join the other processes, if there are any; before anything asks for a device.

    Returns:
        Whether there are others.

    Raises:
        DistributedError: options that do not go together, or processes that do not come.
    """
    where, by_hand = environment(), (options.coordinator, options.process_count, options.process_index)
    if any(value is not None for value in by_hand) and any(value is None for value in by_hand) and where is None:
        raise DistributedError(
            f"--coordinator {options.coordinator}, --process-count {options.process_count} and --process-index "
            f"{options.process_index} go together: give all three (nothing else says how many processes there are)"
        )
    if where is None and options.coordinator is None and not options.distributed:
        return False
    if options.coordinator is not None and not options.coordinator.rpartition(":")[2].isdecimal():
        raise DistributedError(
            f"--coordinator is {options.coordinator!r}: expected HOST:PORT, for example 10.0.0.1:1234"
        )
    logging.getLogger("jax").setLevel(logging.WARNING)
    _initialize(options, where or ("the environment" if options.coordinator is None else "the command line"))
    if jax.process_index():
        # The first process speaks for all.
        logger.setLevel(logging.WARNING)
    logger.info("process %d of %d", jax.process_index(), jax.process_count())
    return jax.process_count() > 1


@contextlib.contextmanager
def session(options: argparse.Namespace) -> Iterator[None]:
    """`join`, and while the block runs end this process when another one fails, and the others when this one does."""
    if not join(options):
        yield
        return
    watch = _Watch(options.lost_after)
    watch.start()
    try:
        yield
    except BaseException as error:
        watch.ignore()
        _tell_others(f"process {jax.process_index()} of {jax.process_count()} failed: {_one_line(error)}")
        raise
    finally:
        watch.stop()


def leave(status: int) -> int:
    """The exit status of a command; a failed one of several processes does not wait for the others, but ends here."""
    if status == 0 or not _runtime.global_state.client:
        return status
    _end(status)


def is_loss(error: BaseException | None) -> bool:
    """True if an error may come from a lost process: JAX itself failed while several processes were running."""
    if jax.process_count() == 1:
        return False
    while error is not None:
        # What fails while a program is started, and not while it runs, is a plain ValueError.
        if isinstance(error, jax.errors.JaxRuntimeError) or (isinstance(error, ValueError) and "Gloo" in str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def describe_lost(error: BaseException) -> str:
    """Describe a computation that failed while several processes were running."""
    return (
        f"process {jax.process_index()} of {jax.process_count()}: a computation that all processes share did not "
        f"finish; most likely another one was lost, so look at its output ({_one_line(error)}). {_AGAIN}"
    )


def processes() -> Processes:
    """Return the processes of this run."""
    return Processes(jax.process_index(), jax.process_count(), gather_objects, any_process)


def any_process(flag: bool) -> bool:
    """Tell whether the flag is set on any process; all of them call it."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def gather_objects(value: Any) -> list[Any]:
    """Gather the objects of the other processes; empty if there is only one. Pickled: small objects of our own only."""
    if jax.process_count() == 1:
        return []
    own = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(own.size, np.int32))
    rows = multihost_utils.process_allgather(np.pad(own, (0, int(sizes.max()) - own.size)))
    gathered = [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]
    return [other for index, other in enumerate(gathered) if index != jax.process_index()]


class _Watch(threading.Thread):
    """Gives a sign of life every second, and ends this process as soon as another one has failed or is lost.

    Args:
        lost_after: seconds of silence after which the first process takes another one for lost.
    """

    def __init__(self, lost_after: int):
        super().__init__(name="voken-watch", daemon=True)
        self._stopped, self._lost_after = threading.Event(), lost_after
        self._heard: dict[str, tuple[str, float]] = {}

    def run(self) -> None:
        index, signs = jax.process_index(), 0
        while not self._stopped.is_set():
            try:
                signs += 1
                _client().key_value_set(f"{_ALIVE}/{index}", str(signs), allow_overwrite=True)
                if index == 0:
                    self._listen()
                reason = _client().blocking_key_value_get(_FAILED, int(1000 * _POLL_SECONDS))
            except jax.errors.JaxRuntimeError:
                # Nobody failed so far; or there is no service any more, which JAX itself notices.
                self._stopped.wait(0.1)
                continue
            if not self._stopped.is_set():
                print(f"error: {reason}; this is process {index}, which ends too", file=sys.stderr)
                _end(LOST)

    def ignore(self) -> None:
        """Let this process end in its own way, whatever happens to others."""
        self._stopped.set()

    def stop(self) -> None:
        """Take leave: silence from now on means nothing."""
        self.ignore()
        self.join()
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            _client().key_value_delete(f"{_ALIVE}/{jax.process_index()}")

    def _listen(self) -> None:
        now, before = time.monotonic(), self._heard
        signs = dict(_client().key_value_dir_get(_ALIVE))
        heard = {key: before[key] if before.get(key, ("",))[0] == sign else (sign, now) for key, sign in signs.items()}
        silent = [int(key.rpartition("/")[2]) for key, (_, since) in heard.items() if now - since > self._lost_after]
        self._heard = heard
        if silent:
            _tell_others(
                f"process(es) {', '.join(map(str, sorted(silent)))} of {jax.process_count()} lost: silent for "
                f"{self._lost_after} s (killed, out of memory, or the host is gone; see the output there). {_AGAIN}"
            )


def _initialize(options: argparse.Namespace, where: str) -> None:
    try:
        jax.distributed.initialize(
            options.coordinator,
            options.process_count,
            options.process_index,
            heartbeat_timeout_seconds=options.lost_after + _SERVICE_WAITS_LONGER,
            shutdown_timeout_seconds=options.lost_after,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise DistributedError(
            f"the processes cannot be joined by what {where} gives: {_one_line(error)}. All of them have to be started "
            "with the same coordinator, whose port has to be free on process 0 and reachable from all others"
        ) from error


def _end(status: int) -> NoReturn:
    """End without waiting for the others; the first process, from whom they learn why, a little later."""
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.process_index() == 0:
        time.sleep(3 * _POLL_SECONDS)
    os._exit(status)


def _tell_others(text: str) -> None:
    # Another process may have failed first, or the service may be gone; either way the others know.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        _client().key_value_set(_FAILED, text)


def _client() -> Any:
    return _runtime.global_state.client


def _one_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
