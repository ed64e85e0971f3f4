"""Classes are known by their names: each source numbers them for itself, and two may number differently.

A source without class names (a flat folder, a list with numbers, photographs) says nothing about what its numbers mean;
they are then taken as they are.
"""

from __future__ import annotations

import difflib
import logging
import os
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int32

from voken_common.data.errors import DataError, some

logger = logging.getLogger("voken.data")


def class_name(name: str) -> str:
    """The name of a class as it is compared and kept: composed Unicode (NFC), bytes that are no UTF-8 written out.

    One folder is called by composed letters on one system and by decomposed ones on another.
    """
    return unicodedata.normalize("NFC", os.fsencode(name).decode("utf-8", "backslashreplace"))


def class_names(names: Iterable[str]) -> tuple[str, ...]:
    """The names of all classes of a source, by number.

    Raises:
      DataError: two classes have one name.
    """
    found = tuple(class_name(name) for name in names)
    if len(set(found)) < len(found):
        twice = next(name for name in found if found.count(name) > 1)
        raise DataError(f"two classes are called {twice}, and classes are known by their names: rename one of them")
    return found


def numbers_in(
    reference: Sequence[str], own: Sequence[str], used: Iterable[int], *, where: str, reference_where: str
) -> Int32[np.ndarray, " k"]:
    """The numbers that the classes of one source have in another: entry i is that of class `own[i]`, or -1.

    Args:
      reference: names of the classes whose numbers are wanted, by number.
      own: names of the source's classes, by number.
      used: numbers of those of which there is a sample; only they need to be known.
      where, reference_where: what messages call the two.

    Raises:
      DataError: a class of which there is a sample is not among the others.
    """
    number = {name: i for i, name in enumerate(reference)}
    unknown = [own[i] for i in sorted(set(used)) if own[i] not in number]
    if unknown:
        folded = {name.casefold(): name for name in reference}
        near = difflib.get_close_matches(unknown[0].casefold(), list(folded), n=1, cutoff=0.8)
        hint = f" (is {unknown[0]} its class {folded[near[0]]}?)" if near else ""
        raise DataError(
            f"{where}; {len(unknown)} class(es) that {reference_where} has not: {some(unknown)}{hint}; "
            f"{reference_where} has {len(reference)}: {some(list(reference))}. Classes are known by their names, and "
            "one may have fewer than the other, but not others: rename or remove them, or name data of the same classes"
        )
    numbers = np.array([number.get(name, -1) for name in own], np.int32)
    if (missing := [name for name in reference if name not in {own[i] for i in used}]) and len(own):
        logger.info("%s has no sample of %d class(es): %s", where, len(missing), some(missing))
    return numbers


def warn_unnamed(where: str, reference_where: str) -> None:
    """Say that labels of one of two sources are numbers without names, so that nothing can be compared."""
    logger.warning(
        "%s and %s: only one of them names its classes, so labels are compared by number alone; see that the numbers "
        "mean the same in both",
        where,
        reference_where,
    )
