"""Find the cause of an error that libraries wrap in pages of their own."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator

LONGEST = 400
"""Characters of a library's text that a message of ours quotes."""
_CODE = re.compile(r"(?:os_error_code|errno)\W{1,4}(\d{1,3})", re.IGNORECASE)
_TELLING = (
    "ENOSPC",
    "EFBIG",
    "EDQUOT",
    "EACCES",
    "EPERM",
    "EROFS",
    "EIO",
    "ESTALE",
    "ENAMETOOLONG",
    "EMFILE",
    "ENOENT",
)


def shortened(error: BaseException, longest: int = LONGEST) -> str:
    """The text of an error on one line; of a long one the cause, the beginning and the end."""
    text = " ".join(str(error).split())
    if len(text) <= longest:
        return text
    head, tail = longest * 3 // 8, longest // 2
    short = f"{text[:head]} ... {text[-tail:]}"
    cause = cause_of(error)
    return short if cause is None or cause in short else f"{cause}: {short}"


def cause_of(error: BaseException) -> str | None:
    """Return the system's own words (`File too large`), or None if there are none."""
    for link in _chain(error):
        if isinstance(link, OSError) and link.errno is not None:
            return os.strerror(link.errno)
    text = " ".join(str(link) for link in _chain(error))
    if (code := _CODE.search(text)) is not None:
        return os.strerror(int(code[1]))
    known = [os.strerror(getattr(errno, name)) for name in _TELLING]
    return next((words for words in known if words in text), None)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__
