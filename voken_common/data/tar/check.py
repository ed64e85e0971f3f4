"""Check the images of a tar: the good ones with their offsets, and the reason for each of the others."""

from __future__ import annotations

import dataclasses
import os
import warnings
from typing import Any

from voken_common.data.decode import MAX_ASPECT, identified, is_image_name, reason_of, to_rgb
from voken_common.data.storage import files as storage
from voken_common.data.tar.format import TarDamageError, TarMember, walk_tar
from voken_common.data.tar.index import Fingerprint, IndexedTar
from voken_common.untrusted.files import LARGEST_IMAGE

IMAGE_KEYS = ("jpg", "jpeg", "jpeg.jpg", "jpg.jpg", "png", "webp")
"""What follows the first dot of a member's name, in lower case, if it is an image; of one sample the first is taken."""


@dataclasses.dataclass(frozen=True)
class CheckOptions:
    """Requirements of a good image, besides decoding without a warning."""

    min_side: int | None = None
    max_aspect: float | None = None


@dataclasses.dataclass(frozen=True)
class TarReport:
    """One tar, checked.

    Attributes:
      name, fingerprint: which tar, as it was.
      good: its images.
      bad: the reason for each bad member.
      damage: what is wrong with the tar itself.
      passed_over: members that are named like images but not like those of a sample: how many, and the first.
    """

    name: str
    fingerprint: Fingerprint
    good: tuple[TarMember, ...]
    bad: dict[str, str]
    damage: str | None
    passed_over: tuple[int, str]

    @property
    def indexed(self) -> IndexedTar:
        """The tar as the index lists it."""
        return IndexedTar(self.name, self.fingerprint, self.good)

    def to_json(self) -> dict[str, Any]:
        """Return the requirements as JSON values."""
        return {
            "name": self.name,
            "fingerprint": dataclasses.astuple(self.fingerprint),
            "good": [dataclasses.astuple(member) for member in self.good],
            "bad": self.bad,
            "damage": self.damage,
            "passed_over": list(self.passed_over),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TarReport:
        """Inverse of `to_json`.

        Raises:
          KeyError, TypeError, ValueError: it is none.
        """
        good = tuple(TarMember(*member) for member in values["good"])
        fingerprint = Fingerprint(*values["fingerprint"])
        count, first = values["passed_over"]
        return cls(values["name"], fingerprint, good, dict(values["bad"]), values["damage"], (count, first))


def sample_key(name: str) -> tuple[str, str]:
    """A member's sample and what it is of it: `a/b.jpeg.jpg` is the `jpeg.jpg` of the sample `a/b`."""
    folder, base = os.path.split(name)
    stem, _, extension = base.partition(".")
    return os.path.join(folder, stem), extension.lower()


def check_tar(path: str, options: CheckOptions) -> TarReport:
    """Read a tar from front to back and decode every image in it.

    Args:
      path: local path or URL.
      options: what a good image is.

    Raises:
      OSError: it cannot be read.
    """
    fingerprint = Fingerprint.of(path)
    images: dict[str, tuple[int, TarMember, str | None]] = {}
    damage = None
    passed_over: list[str] = []
    with storage.open_reading(path) as file:
        try:
            for member in walk_tar(file, fingerprint.size):
                sample, extension = sample_key(member.name)
                if extension not in IMAGE_KEYS or not os.path.basename(sample):
                    if is_image_name(os.path.basename(member.name)):
                        passed_over.append(member.name)
                    continue
                rank = IMAGE_KEYS.index(extension)
                # A name that comes again replaces the earlier one, as it does when a tar is unpacked.
                if sample not in images or rank <= images[sample][0]:
                    images[sample] = (rank, member, _check_member(file, member, options))
        except TarDamageError as error:
            damage = str(error)
    good = tuple(member for _, member, reason in images.values() if reason is None)
    bad = {member.name: reason for _, member, reason in images.values() if reason is not None}
    good = tuple(sorted(good, key=lambda member: member.start))
    others = (len(passed_over), passed_over[0] if passed_over else "")
    return TarReport(os.path.basename(path), fingerprint, good, bad, damage, others)


def _check_member(file: Any, member: TarMember, options: CheckOptions) -> str | None:
    if not member.size:
        return "the file is empty"
    if member.size > LARGEST_IMAGE:
        return f"an image of {member.size} bytes"
    file.seek(member.start)
    return image_problem(file.read(member.size), options)


def image_problem(data: bytes, options: CheckOptions) -> str | None:
    """Return the fault of an image, or None for a good one.

    Bad are images that do not decode to RGB, or warn while they do, or are too small or too long. Not safe in threads:
    the filter of warnings is that of the whole process.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            with identified(data) as image:
                if problem := _shape_problem(image.size, options):
                    return problem
                image.load()
                # Of a palette with transparency this is where Pillow warns; training decodes it without.
                if image.mode != "RGB":
                    image.convert("RGB")
                to_rgb(image)
        except Warning as warning:
            return f"warning: {warning}"
        except Exception as error:
            # As in decode_image: damaged files make the decoders raise nearly anything.
            return reason_of(error)
    return None


def _shape_problem(size: tuple[int, int], options: CheckOptions) -> str | None:
    short, long = sorted(size)
    if long > MAX_ASPECT * short:
        return f"{size[1]}x{size[0]} pixels: sides differ by more than {MAX_ASPECT}"
    if options.min_side is not None and short < options.min_side:
        return f"{size[1]}x{size[0]} pixels: a side is under {options.min_side}"
    if options.max_aspect is not None and long > options.max_aspect * short:
        return f"{size[1]}x{size[0]} pixels: sides differ by more than {options.max_aspect:g}"
    return None
