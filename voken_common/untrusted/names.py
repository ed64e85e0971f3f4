"""Names that a file brings along, as paths below a folder of ours.

Keys of samples, members of archives and classes are written by whoever made the data. As a path such a name could
leave the folder it is meant for, hide, or meet another one where a file system ignores case. All of voken that makes a
path of such a name does so here.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from pathlib import PurePosixPath

LONGEST_PART = 200
"""Bytes of one part of a path; 55 less than file systems allow, for the ending of a file that is being written."""
LONGEST_PATH = 1000
"""Bytes of a whole path below its folder."""
DEEPEST = 32
"""Folders that a name may open."""
EMPTY = "unnamed"
"""Stands for a name of which nothing is left."""
_FORBIDDEN = frozenset('\\:*?"<>|')
"""Means something else on Windows."""
_HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])[ ]*(\..*)?", re.IGNORECASE)


def safe_path(key: str, suffix: str = "") -> PurePosixPath:
    """Make a relative path of any string; it never leaves the folder that it is joined to.

    Ordinary keys stay as they are. A leading slash, `.`, `..` and empty parts vanish; characters that cannot be seen,
    that are no text or that Windows reserves become `%` and the two hexadecimal digits of each byte; a leading dot and
    the names of devices get a `_` in front; what is too long is cut and ends in a checksum of all of it.

    Args:
        key: from data: any characters, bytes that are no UTF-8 as `os.fsdecode` gives them.
        suffix: ending of the file's name, added as it is, such as `.png`.

    Returns:
        one part or more, none of them `..`, each at most `LONGEST_PART` bytes of UTF-8.
    """
    parts = [part for part in key.split("/") if part not in ("", ".", "..")] or [EMPTY]
    safe = [_safe_part(part, "") for part in parts[:-1]] + [_safe_part(parts[-1], suffix)]
    path = PurePosixPath(*safe)
    if len(safe) > DEEPEST or len(str(path).encode()) > LONGEST_PATH:
        path = PurePosixPath(f"long-{_checksum(key)}", safe[-1])
    return path


class SafeNames:
    """Gives every key of a data set a path of its own, also where a file system ignores case or forms of Unicode.

    Args:
        reserved: relative paths that are taken.
    """

    def __init__(self, reserved: Iterable[str] = ()):
        self._files = {_folded(PurePosixPath(name)) for name in reserved}
        self._folders: set[str] = set()

    def path(self, key: str, suffix: str = "", *, distinct: str = "2") -> PurePosixPath:
        """The `safe_path` of a key, or a changed one if that is taken.

        Args:
            key, suffix: of `safe_path`.
            distinct: stands before the suffix where the name is taken; numbered where that does not suffice.
        """
        path, number = safe_path(key, suffix), 1
        while not self._is_free(path):
            path = safe_path(key, f".{distinct}{suffix}" if number == 1 else f".{distinct}-{number}{suffix}")
            if any(_folded(parent) in self._files for parent in path.parents):
                path = safe_path(key.replace("/", "%2F"), f".{distinct}-{number}{suffix}")
            number += 1
        self._files.add(_folded(path))
        self._folders |= {_folded(parent) for parent in path.parents}
        return path

    def _is_free(self, path: PurePosixPath) -> bool:
        taken = _folded(path) in self._files or _folded(path) in self._folders
        return not taken and not any(_folded(parent) in self._files for parent in path.parents)


def _safe_part(part: str, suffix: str) -> str:
    text = "".join(character if _is_plain(character) else _quoted(character) for character in part)
    if text[0] == "." or _DEVICES.fullmatch(text + suffix):
        text = f"_{text}"
    if not suffix and text[-1] in ". ":
        text = text[:-1] + _quoted(text[-1])
    room = LONGEST_PART - len(suffix.encode())
    if len(text.encode()) > room:
        ending = f"-{_checksum(part)}"
        text = text.encode()[: room - len(ending)].decode(errors="ignore") + ending
    return text + suffix


def _is_plain(character: str) -> bool:
    return character not in _FORBIDDEN and unicodedata.category(character) not in _HIDDEN_CATEGORIES


def _quoted(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in _bytes(character))


def _bytes(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def _checksum(text: str) -> str:
    return hashlib.sha256(_bytes(text)).hexdigest()[:16]


def _folded(path: PurePosixPath) -> str:
    """Return one key for all paths that some file system takes for the same."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKD", str(path)).casefold()).casefold()
