"""The package array_record: where it is, and what its errors mean."""

from __future__ import annotations

import errno
import os
import re
from typing import Any

from voken_common.data.errors import DataError

_FAILED_CALL = re.compile(r"\w+\(\) failed: (?P<reason>[^;]+); (?:opening|reading) (?P<path>[^;]+)")
_NUMBERS = {os.strerror(number): number for number in errno.errorcode}


def array_record_module() -> Any:
    """Its readers and writers.

    Raises:
        DataError: it is not installed.
    """
    try:
        from array_record.python import array_record_module
    except ImportError as error:
        raise DataError(
            f"token shards need array_record, which Grain brings along: pip install 'grain>=0.2.17,<0.3' ({error})"
        ) from error
    return array_record_module


def system_error(error: Exception) -> OSError | None:
    """The OSError that an error of its readers stands for; None for damaged records and whatever else they say.

    The library puts a call of the system that failed into words. A reader that met one fails from
    then on: open another.
    """
    found = _FAILED_CALL.search(str(error))
    if found is None:
        return None
    return OSError(_NUMBERS.get(found["reason"], errno.EIO), found["reason"], found["path"])
