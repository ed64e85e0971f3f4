"""Opening videos of others: containers of known formats, which name no other file."""

from __future__ import annotations

import os
from typing import Any

from voken_common.untrusted.files import open_descriptor

FORMATS = ("mov,mp4,m4a,3gp,3g2,mj2", "avi", "matroska,webm")
"""Of FFmpeg's formats those of mp4, mov, m4v, avi, webm and mkv. It looks at the content alone, and a playlist or a
script that is called x.mp4 would have it open what stands in it: files of this machine, or addresses."""


def open_container(path: str | os.PathLike[str]) -> Any:
    """A container of PyAV, to be closed.

    Raises:
        OSError: not there, or no regular file.
        av.FFmpegError: it cannot be opened, or is of another format.
    """
    import av

    os.close(open_descriptor(os.fspath(path)))
    options = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file"}
    return av.open(os.fspath(path), metadata_errors="ignore", options=options)
