"""What Orbax repeats of a write or read that failed is left out, and nothing else."""

import asyncio
import logging
import sys
import types

import pytest

from voken_jax.checkpoints import orbax_messages as orbax_noise


@pytest.fixture
def heard(monkeypatch):
    """What reaches the hook for errors that nobody can catch, while the filters are in place once."""
    errors, loggers = [], [logging.getLogger(name) for name in ("absl", "asyncio")]
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: errors.append(unraisable.exc_value))
    for log in loggers:
        monkeypatch.setattr(log, "filters", [])
    orbax_noise.hush.cache_clear()
    orbax_noise.hush()
    orbax_noise.hush()
    assert all(len(log.filters) == 1 for log in loggers)
    yield errors
    orbax_noise.hush.cache_clear()


def raised(file):
    """An error that passed through a file of this name."""
    try:
        exec(compile("raise ValueError('no space left')", file, "exec"))
    except ValueError as error:
        return error


@pytest.mark.parametrize(("file", "told"), [("site-packages/orbax/checkpoint/x.py", False), ("somebody/else.py", True)])
def test_writes_that_nobody_waits_for(heard, caplog, file, told):
    text = "_GatheringFuture exception was never retrieved"
    logging.getLogger("asyncio").error(text, exc_info=raised(file))
    logging.getLogger("asyncio").error("another trouble", exc_info=raised(file))
    assert (text in caplog.text) == told
    assert "another trouble" in caplog.text


def test_threads_that_raise_what_they_log(heard, caplog):
    text, log = (
        "[thread=array_type_handler] _SignalingThread.run() raised an exception: no space",
        logging.getLogger("absl"),
    )
    origin = "site-packages/orbax/checkpoint/futures.py"
    for told in (text, "slow disk"):
        log.handle(log.makeRecord("absl", logging.ERROR, origin, 1, told, (), None))
    assert text not in caplog.text
    assert "slow disk" in caplog.text


def test_reports_to_a_closed_loop(heard):
    loop = asyncio.new_event_loop()
    loop.close()
    for call in (lambda: loop.call_soon_threadsafe(print), lambda: 1 / 0):
        try:
            call()
        except Exception as error:
            sys.unraisablehook(types.SimpleNamespace(exc_value=error, object=None))
    assert [type(error) for error in heard] == [ZeroDivisionError]


@pytest.mark.parametrize(("file", "told"), [("site-packages/orbax/checkpoint/x.py", 0), ("somebody/else.py", 1)])
def test_reads_of_further_arrays(heard, file, told):
    names = {}
    exec(compile("async def read(): raise ValueError('damaged')", file, "exec"), names)
    coroutine = names["read"]()
    try:
        coroutine.send(None)
    except ValueError as error:
        sys.unraisablehook(types.SimpleNamespace(exc_value=error, object=coroutine))
    assert len(heard) == told
