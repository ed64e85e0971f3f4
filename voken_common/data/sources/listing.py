"""List the files of a folder of classes or of a flat folder; the list may be kept between runs.

A kept list is used as long as the folders it was made of have the same times: whatever adds, removes or renames a file
changes the time of its folder. Looking at a thousand folders costs a thousandth of listing a million files.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from voken_common.data.errors import DataError, some
from voken_common.data.storage.array_file import ArrayFileError, StringTable, map_arrays, pack_strings, write_arrays
from voken_common.untrusted.text import shown

logger = logging.getLogger("voken.data")

_VERSION = 2
_ENDINGS = 5
_YOUNG = 2_000_000_000
"""Nanoseconds within which a folder may change twice without a change of its time, on the coarsest file systems."""


@dataclasses.dataclass(frozen=True)
class Medium:
    """A kind of file that is looked for, and its name in messages."""

    noun: str
    suffixes: tuple[str, ...]
    expected: str
    """The layouts that are understood, with {root} for the folder."""

    def matches(self, name: str) -> bool:
        """True if a file name is of this kind."""
        return name.lower().endswith(self.suffixes) and not name.startswith(".")


@dataclasses.dataclass(frozen=True)
class Listing:
    """A folder: files in it that match (`top`) and `others`, its folders (`classes`), and matching files in each."""

    classes: list[str]
    top: list[str]
    others: list[str]
    per_class: list[list[str]]
    passed_over: list[str] = dataclasses.field(default_factory=list)
    """Files that do not match, wherever they lie; hidden ones among them."""

    def without(self, names: frozenset[str]) -> Listing:
        """Without files of these names, in whichever folder."""
        if not names:
            return self
        per_class = [[path for path in paths if os.path.basename(path) not in names] for paths in self.per_class]
        return dataclasses.replace(self, top=[name for name in self.top if name not in names], per_class=per_class)


def list_folder(root: Path, medium: Medium, cache: str | None = None) -> Listing:
    """The files of a kind in a folder and, by class, in its folders; all sorted, without hidden ones.

    Args:
      root: the folder.
      medium: what to look for.
      cache: a file to keep the list in.

    Raises:
      DataError: there is no such folder, or it cannot be listed.
    """
    if cache is not None and (kept := _kept(Path(cache).expanduser(), root, medium)):
        return kept
    times: dict[str, int] = {}
    started = time.time_ns()
    classes, files = top_names(root, medium, times)
    passed_over: list[str] = []
    per_class = [_below(root, name, medium, times, passed_over) for name in classes]
    top = [name for name in files if medium.matches(name)]
    others = [name for name in files if not medium.matches(name)]
    found = Listing(classes, top, others, per_class, others + passed_over)
    if cache is not None and (top or any(per_class)):
        _keep(Path(cache).expanduser(), root, medium, found, times, started)
    return found


def top_names(root: Path, medium: Medium, times: dict[str, int] | None = None) -> tuple[list[str], list[str]]:
    """Sorted names of the folders and of the files that lie directly in a folder; its time is added to `times`.

    Raises:
      DataError: there is no such folder, or it cannot be listed.
    """
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else nearest(root)
        raise DataError(f"no {medium.noun} folder at {root}: {what}. Expected\n{medium.expected.format(root=root)}")
    try:
        if times is not None:
            times["."] = root.stat().st_mtime_ns
        with os.scandir(root) as entries:
            named = sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"cannot list the {medium.noun} folder {root}: {error.strerror}") from error
    return [name for name, is_folder in named if is_folder], [name for name, is_folder in named if not is_folder]


def _below(root: Path, folder: str, medium: Medium, times: dict[str, int], passed_over: list[str]) -> list[str]:
    """Sorted paths of the matching files in a folder and its folders, relative to it; others go to `passed_over`."""
    paths = []
    for parent, children, names in os.walk(root / folder, onerror=_cannot_list):
        inner = os.path.relpath(parent, root / folder)
        # os.walk has listed it already; a change since then gives a time after `started`, and the list is not kept.
        times[os.path.normpath(os.path.join(folder, inner))] = os.stat(parent).st_mtime_ns
        children[:] = [child for child in children if not child.startswith(".")]
        if linked := [child for child in children if os.path.islink(os.path.join(parent, child))]:
            # They might lead in a circle.
            logger.warning("%s: links to folders are not followed below a class: %s", parent, some(linked))
        matching = [name for name in names if medium.matches(name)]
        others = sorted(set(names) - set(matching))
        passed_over += [os.path.normpath(os.path.join(folder, inner, name)) for name in others]
        paths += matching if inner == "." else [os.path.join(inner, name) for name in matching]
    return sorted(paths)


def _cannot_list(error: OSError) -> None:
    # By default os.walk passes over it, and a class would vanish without a word.
    raise DataError(f"cannot list the folder {error.filename}: {error.strerror}; make it readable, or move it away")


def _keep(path: Path, root: Path, medium: Medium, found: Listing, times: dict[str, int], started: int) -> None:
    if max(times.values()) > started - _YOUNG:
        logger.info("the list of files in %s is not kept: a folder changed a moment ago", root)
        return
    arrays = {"times": np.array(list(times.values()), np.int64)}
    arrays["counts"] = np.array([len(paths) for paths in found.per_class], np.int64)
    tables: dict[str, Sequence[str]] = {
        "folders": list(times),
        "classes": found.classes,
        "top": found.top,
        "paths": [path for paths in found.per_class for path in paths],
        "passed_over": found.passed_over,
    }
    for name, strings in tables.items():
        arrays[f"{name}_bytes"], arrays[f"{name}_ends"] = pack_strings(strings)
    try:
        write_arrays(path, arrays, _about(root, medium))
    except OSError as error:
        logger.warning("cannot keep the list of files in %s: %s", path, error.strerror or error)


def _kept(path: Path, root: Path, medium: Medium) -> Listing | None:
    try:
        arrays, about = map_arrays(path)
        if about != _about(root, medium):
            return None
        tables = {
            name: StringTable.of_arrays(arrays[f"{name}_bytes"], arrays[f"{name}_ends"])
            for name in ("folders", "classes", "top", "paths", "passed_over")
        }
        for folder, modified in zip(tables["folders"], arrays["times"], strict=True):
            if os.stat(root / folder).st_mtime_ns != modified:
                return None
        ends = np.cumsum(arrays["counts"])
        paths = list(tables["paths"])
        per_class = [paths[end - count : end] for end, count in zip(ends, arrays["counts"], strict=True)]
        if len(per_class) != len(tables["classes"]) or (len(ends) and ends[-1] != len(paths)):
            return None
        return Listing(list(tables["classes"]), list(tables["top"]), [], per_class, list(tables["passed_over"]))
    except FileNotFoundError:
        return None
    except (OSError, ArrayFileError, KeyError, ValueError) as error:
        logger.warning("the list of files kept in %s is of no use (%s) and made anew", path, error)
        return None


def _about(root: Path, medium: Medium) -> dict[str, object]:
    return {"version": _VERSION, "root": str(root.absolute()), "suffixes": list(medium.suffixes)}


def tell_passed_over(root: Path, medium: Medium, found: Listing) -> None:
    """Say which files of a folder are not used, since they are not named like what is looked for."""
    if not found.passed_over:
        return
    endings = collections.Counter(_ending(name) for name in found.passed_over)
    counts = ", ".join(f"{count} {ending}" for ending, count in endings.most_common(_ENDINGS))
    logger.warning(
        "%s: %d file(s) are passed over (%s), for example %s; %ss are files named %s",
        root,
        len(found.passed_over),
        counts,
        shown(found.passed_over[0]),
        medium.noun,
        ", ".join(medium.suffixes),
    )


def _ending(name: str) -> str:
    base = os.path.basename(name)
    return "hidden" if base.startswith(".") else os.path.splitext(base)[1].lower() or "without an ending"


def nearest(path: Path) -> str:
    """Describe the part of a missing path that does exist."""
    parent = next((parent for parent in path.absolute().parents if parent.is_dir()), Path("/"))
    with os.scandir(parent) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    return f"it does not exist; {parent} exists and holds {some(names) or 'nothing'}"


def found_instead(listing: Listing) -> str:
    """Describe the contents of a folder that has none of the files looked for."""
    named = ((listing.classes, "folders"), (sorted(listing.top + listing.others), "files"))
    parts = [f"{len(names)} {what} ({some(names)})" for names, what in named if names]
    return "found " + " and ".join(parts) if parts else "it is empty"


def has_tars(listing: Listing) -> bool:
    """True if a folder directly holds tars."""
    return any(name.endswith(".tar") for name in listing.others)
