"""Text that a file brings along, in messages that reach a terminal.

A name may hold control sequences that clear the screen, or marks that turn the direction of what follows. Every error
of voken escapes its text (`voken_common.errors.UserError`), and every command prints and logs through this module.
"""

from __future__ import annotations

import logging
import sys
import unicodedata
from typing import IO, Any

LONGEST = 20_000
"""Characters of one message; the middle of a longer one is left out."""
LONGEST_NAME = 200
"""Characters of one name within a message."""
_HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def escape(text: str) -> str:
    """A message without anything that a terminal obeys or that cannot be seen; line breaks and tabs stay.

    Escaping twice changes nothing more.
    """
    if len(text) > LONGEST:
        left_out = len(text) - LONGEST
        text = f"{text[: LONGEST // 2]} [... {left_out} characters left out ...] {text[-LONGEST // 2 :]}"
    if text.isascii() and text.isprintable():
        return text
    return "".join(_visible(character) for character in text)


def shown(name: object, limit: int = LONGEST_NAME) -> str:
    """A name from a file, on one line and of bounded length, for a message of several lines or names.

    Args:
        name: anything; the text of it is shown.
        limit: characters.
    """
    text = str(name)
    if len(text) > limit:
        text = f"{text[: limit // 2]}...{text[-limit // 2 :]}"
    return escape(text).replace("\n", "\\n").replace("\t", "\\t")


def say(text: str, *, error: bool = False) -> None:
    """Print a message of a command, escaped; lines after the first that are not indented become so.

    Args:
        text: of the message.
        error: it goes to standard error.
    """
    stream: IO[str] = sys.stderr if error else sys.stdout
    print(_printable(text, stream), file=stream, flush=error)


class EscapedStream:
    """Standard output of a command, where everything that is printed goes through `say`'s escaping.

    Args:
        stream: gets the text.
    """

    def __init__(self, stream: IO[str]):
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a message, or the line break after one."""
        self._stream.write(text if text == "\n" else _printable(text, self._stream))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class EscapingFormatter(logging.Formatter):
    """Log records as one escaped message each, so that a name in one cannot look like another record."""

    def format(self, record: logging.LogRecord) -> str:
        """The text of a record."""
        return _indented(escape(super().format(record)))


def log_to_terminal(level: int = logging.INFO) -> None:
    """Log messages of voken to standard error, escaped; for commands. Other libraries' loggers are included."""
    root = logging.getLogger()
    if not root.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(EscapingFormatter("%(message)s"))
        root.addHandler(handler)
        root.setLevel(level)
        logging.captureWarnings(True)
    logging.getLogger("absl").setLevel(logging.WARNING)


def _printable(text: str, stream: IO[str]) -> str:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return _indented(escape(text)).encode(encoding, "backslashreplace").decode(encoding)


def _visible(character: str) -> str:
    if character in "\n\t" or unicodedata.category(character) not in _HIDDEN_CATEGORIES:
        return character
    return character.encode("unicode_escape").decode("ascii")


def _indented(text: str) -> str:
    first, *rest = text.split("\n")
    return "\n".join([first, *(line if not line or line[0] in " \t" else f"  {line}" for line in rest)])
