"""The file that the ADM evaluator reads: one uint8 array `arr_0` (N, H, W, 3) in an .npz, written piece by piece.

Images lie in `FILE.parts` until all are there, those of every process in a file of their own, in the order of the
final array. A run that was killed goes on after its last whole batch, and the file is that of an undisturbed run.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from voken_common.atomic_write import open_own, replacing, require_no_links
from voken_common.checkpoints.lock import RunLock
from voken_common.errors import WorkdirError
from voken_common.untrusted.files import read_bytes
from voken_common.untrusted.json_text import loads

NAME = "arr_0.npy"
_RECORD = "settings.json"
_PIECE = 2**22
_DATE = (1980, 1, 1, 0, 0, 0)
Draw = Callable[[Int[np.ndarray, " B"]], UInt8[np.ndarray, "B H W 3"]]
"""Images of samples by their numbers."""


class NpzWriter:
    """One process's share of a file of samples.

    Args:
        path: the .npz file.
        total: images of all processes.
        shape: (H, W) of an image.
        batch_size: images per call of the generator; the last batch of a process is filled up, and the rest dropped.
        settings: all that decides the images, as plain values; a run goes on only where it is the same.
        seed: of the order in which the samples lie in the file.
        process_index, process_count: which share.

    Raises:
        ValueError: the file is there, or begun, with other settings; or a share that there is not.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        total: int,
        shape: tuple[int, int],
        batch_size: int,
        settings: dict[str, Any],
        seed: int = 0,
        process_index: int = 0,
        process_count: int = 1,
    ):
        if batch_size < 1 or not 0 <= process_index < process_count:
            raise ValueError(
                f"batch size {batch_size}, process {process_index} of {process_count}: expected at least 1, and a "
                "process number below the count"
            )
        self.path, self.total, self._shape, self._batch_size = Path(path), total, (*shape, 3), batch_size
        self._index, self._count = process_index, process_count
        self._parts = self.path.with_name(self.path.name + ".parts")
        self._order = np.random.default_rng(seed).permutation(total)
        about = {"images": total, "shape": [*self._shape], "batch_size": batch_size, "processes": process_count}
        self._settings = json.loads(json.dumps({**settings, **about, "seed": seed}))
        self._check_same()

    @property
    def complete(self) -> bool:
        """True if the file exists."""
        return self.path.is_file()

    @property
    def share(self) -> tuple[int, int]:
        """First image of this process in the file, and the one after its last."""
        return self._bounds(self._index)

    def done(self) -> int:
        """Images of this process that are on disk, in whole batches."""
        first, last = self.share
        if self.complete:
            return last - first
        part = self._part(self._index)
        images = part.stat().st_size // self._image_bytes if part.is_file() else 0
        return images if images == last - first else images // self._batch_size * self._batch_size

    def run(self, draw: Draw, report: Callable[[int], Any] = lambda _: None) -> bool:
        """Draw the missing samples of this process's share, and write the file when all shares are complete.

        Args:
            draw: gives images by the numbers of their samples, always `batch_size` of them.
            report: told how many images were written, batch by batch.

        Returns:
            whether the file is there; if not, other processes are not done.

        Raises:
            WorkdirError: another process works at the same share.
        """
        require_no_links(self.path.parent, self._parts)
        for index in range(self._count):
            require_no_links(self._parts, self._parts / f"process-{index}")
        if self.complete:
            # What a run that was killed between writing the file and tidying up has left.
            shutil.rmtree(self._parts, ignore_errors=True)
            return True
        with replacing(self._parts / _RECORD) as file:
            file.write(json.dumps(self._settings, indent=1).encode())
        with RunLock(self._parts / f"process-{self._index}"):
            self._draw_missing(draw, report)
        try:
            with RunLock(self._parts / "whole"):
                if not self.complete and self._all_whole():
                    self._assemble()
        except WorkdirError:
            # Another process found all shares whole at the same moment, and is writing the file.
            return self.complete
        return self.complete

    def _draw_missing(self, draw: Draw, report: Callable[[int], Any]) -> None:
        first, last = self.share
        done = self.done()
        with os.fdopen(open_own(self._part(self._index), os.O_WRONLY | os.O_APPEND), "ab") as file:
            file.truncate(done * self._image_bytes)
            for start in range(first + done, last, self._batch_size):
                numbers = self._order[start : min(start + self._batch_size, last)]
                padded = np.concatenate([numbers, np.repeat(numbers[-1:], self._batch_size - len(numbers))])
                images = np.ascontiguousarray(draw(padded)[: len(numbers)])
                if images.dtype != np.uint8 or images.shape[1:] != self._shape:
                    raise ValueError(f"images are {images.dtype} {images.shape[1:]}, expected uint8 {self._shape}")
                file.write(images.data)
                file.flush()
                os.fsync(file.fileno())
                report(len(numbers))

    def _assemble(self) -> None:
        with replacing(self._record_beside) as file:
            file.write(json.dumps(self._settings, indent=1).encode())
        with replacing(self.path) as target, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
            # A fixed date: the same samples are the same bytes.
            with archive.open(zipfile.ZipInfo(NAME, _DATE), "w", force_zip64=True) as member:
                header = {"descr": "|u1", "fortran_order": False, "shape": (self.total, *self._shape)}
                np.lib.format.write_array_header_1_0(member, header)
                for index in range(self._count):
                    with os.fdopen(open_own(self._part(index), os.O_RDONLY), "rb") as part:
                        shutil.copyfileobj(part, member, _PIECE)
        shutil.rmtree(self._parts, ignore_errors=True)

    def _check_same(self) -> None:
        places = (self.path, self._record_beside), (self._parts, self._parts / _RECORD)
        for place, record in places:
            if not place.exists() or (place == self._parts and not record.exists()):
                continue
            found = loads(read_bytes(record)) if record.is_file() else {}
            changed = sorted(key for key in {*found, *self._settings} if found.get(key) != self._settings.get(key))
            if changed:
                key = changed[0]
                raise ValueError(
                    f"{place} is there and was made with other settings ({', '.join(changed)}; {key} was "
                    f"{found.get(key)}, is {self._settings.get(key)}): delete it, or write to another file"
                )

    def _all_whole(self) -> bool:
        for index in range(self._count):
            first, last = self._bounds(index)
            part = self._part(index)
            if (part.stat().st_size if part.is_file() else 0) != (last - first) * self._image_bytes:
                return False
        return True

    def _bounds(self, index: int) -> tuple[int, int]:
        return index * self.total // self._count, (index + 1) * self.total // self._count

    def _part(self, index: int) -> Path:
        return self._parts / f"process-{index}" / "images"

    @property
    def _record_beside(self) -> Path:
        return self.path.with_name(self.path.name + ".json")

    @property
    def _image_bytes(self) -> int:
        return int(np.prod(self._shape))
