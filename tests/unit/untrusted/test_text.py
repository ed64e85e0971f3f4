"""Text from files reaches a terminal escaped, whoever prints it."""

import io
import logging
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voken_common.checkpoints.downloads import WeightsError
from voken_common.checkpoints.weight_names import NameMismatch
from voken_common.commands.main import guarded
from voken_common.config.loading import ConfigError
from voken_common.data.errors import DataError, ImageDecodeError
from voken_common.data.storage.array_file import ArrayFileError
from voken_common.data.tar.format import TarDamageError
from voken_common.errors import CheckpointError, NonFiniteError, RefusedError, WorkdirError
from voken_common.untrusted.text import LONGEST, EscapingFormatter, escape, say, shown

CLEAR = "\x1b[2J\x1b[H\x9b31mall is well\r\x08\u202e\ufeff\udcff"
ERRORS = [
    ArrayFileError,
    CheckpointError,
    ConfigError,
    DataError,
    ImageDecodeError,
    NameMismatch,
    RefusedError,
    TarDamageError,
    WeightsError,
    WorkdirError,
]


def is_plain(text: str) -> bool:
    return all(c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in text)


@given(st.text(st.characters(codec=None)))
def test_escaped_text_holds_nothing_a_terminal_obeys(text):
    assert is_plain(escape(text))
    assert escape(escape(text)) == escape(text)
    assert "\n" not in shown(text)


def test_readable_text_stays():
    text = "é, 火, a\tb\nnext 100 % of C:\\folder"
    assert escape(text) == text


@pytest.mark.parametrize("kind", ERRORS)
def test_every_error_of_ours_is_escaped(kind):
    error = kind(f"name {CLEAR}")
    assert is_plain(str(error))
    assert "\\x1b[2J" in str(error)
    assert error.args == (f"name {CLEAR}",)


def test_the_names_of_terms_are_escaped_too():
    assert is_plain(str(NonFiniteError(1, [CLEAR])))


def test_a_long_message_is_cut():
    assert len(escape("x" * 10**6)) < LONGEST + 100
    assert len(shown("x" * 10**6)) < 300


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_what_a_command_says_is_escaped_and_stays_one_message(monkeypatch, encoding):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    say(f"wrote é {CLEAR}\nerror: forged")
    stream.flush()
    found = stream.buffer.getvalue().decode(encoding)
    assert is_plain(found)
    assert found.endswith("\n  error: forged\n")


def test_whatever_a_command_prints_is_escaped(monkeypatch, capsys):
    def run(options):
        print(f"read {CLEAR}\nerror: forged")
        print("done")
        raise ValueError(f"{CLEAR}\nforged")

    assert guarded(run, None) == 2
    found = capsys.readouterr()
    assert is_plain(found.out + found.err)
    assert found.out.endswith("\n  error: forged\ndone\n")
    assert found.err.endswith("\n  forged\n")


def test_a_log_record_is_escaped_and_stays_one_message():
    record = logging.LogRecord("voken", logging.INFO, "", 1, "read %s", (f"{CLEAR}\nforged",), None)
    text = EscapingFormatter("%(message)s").format(record)
    assert is_plain(text)
    assert "\n  forged" in text
