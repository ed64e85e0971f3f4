"""Weight files of other projects that losses and metrics need: found in a cache, else downloaded, always verified.

The cache is `$VOKEN_CACHE`, else `$XDG_CACHE_HOME/voken`, else `~/.cache/voken`; files lie in its folder `weights`.
`VOKEN_WEIGHTS_URL` replaces where files come from (a mirror that keeps the relative names below).

Of a file without a published sha256 the user names the one that is expected, as `NAME#sha256=HEX`; without it the file
is refused. A path takes the same ending.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import urllib.error
import urllib.request
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from tqdm import tqdm

from voken_common.atomic_write import replacing
from voken_common.errors import UnavailableError

_CHUNK = 1 << 20
LARGEST = 4 << 30
"""Bytes of the largest file that is fetched, whatever length a server claims or leaves out."""
_NAMED_HASH = re.compile(r"(?P<name>.+)#sha256=(?P<sha256>[0-9a-fA-F]{64})")
_TIMEOUT_SECONDS = 60
# Everything a broken connection raises; OSError beyond these is the local disk.
_NETWORK_ERRORS = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)


class WeightsError(UnavailableError):
    """A weight file is missing and cannot be fetched, or is not the file it should be."""


@dataclass(frozen=True)
class WeightFile:
    """A file that others publish.

    Attributes:
        relative: its name in the cache and on a mirror.
        url: where it is published; None where no stable address is known and the user has to bring it.
        source: the project and release it comes from, for people.
        sha256: None where none is published; such a file is refused unless the user names its sha256.
    """

    relative: str
    url: str | None
    source: str
    sha256: str | None

    @property
    def name(self) -> str:
        """The name under which it is published."""
        return self.relative.rsplit("/", 1)[-1]


_LPIPS = "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights"
_LPIPS_SOURCE = "richzhang/PerceptualSimilarity on GitHub, lpips/weights/v0.1"
_TORCHVISION = "https://download.pytorch.org/models"

WEIGHTS: dict[str, WeightFile] = {
    "vgg16": WeightFile(
        "vgg16-397923af.pth",
        f"{_TORCHVISION}/vgg16-397923af.pth",
        "torchvision, VGG16 ImageNet weights",
        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    ),
    "alexnet": WeightFile(
        "alexnet-owt-7be5be79.pth",
        f"{_TORCHVISION}/alexnet-owt-7be5be79.pth",
        "torchvision, AlexNet ImageNet weights",
        "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
    ),
    "lpips_vgg": WeightFile(
        "lpips_v0.1/vgg.pth",
        f"{_LPIPS}/v0.1/vgg.pth",
        _LPIPS_SOURCE,
        "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
    ),
    "lpips_alex": WeightFile(
        "lpips_v0.1/alex.pth",
        f"{_LPIPS}/v0.1/alex.pth",
        _LPIPS_SOURCE,
        "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    ),
    "inception_fid": WeightFile(
        "pt_inception-2015-12-05-6726825d.pth",
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
        "mseitzer/pytorch-fid on GitHub, release fid_weights",
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    ),
    "i3d": WeightFile(
        "i3d_pretrained_400.pt", None, "wilson1yan/VideoGPT on GitHub, the I3D weights of its FVD evaluation", None
    ),
}


def default_cache() -> Path:
    """The cache folder that the environment names, see the top of this file."""
    if given := os.environ.get("VOKEN_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "voken"


def resolve(
    name_or_path: str | Path, *, sha256: str | None = None, cache_dir: str | Path | None = None, progress: bool = True
) -> Path:
    """The local file for a known weight name, downloaded once, or for a path as it is.

    Args:
        name_or_path: a key of `WEIGHTS`, or the path of a file; either may end in `#sha256=HEX`.
        sha256: of the file that is expected; needed for a known name without a published one, and checked for a path.
        cache_dir: instead of `default_cache()`.
        progress: show a bar while downloading.

    Returns:
        An existing file. For a known name its content has been checked against the published or the named sha256, for
        a path against the named one, if any.

    Raises:
        WeightsError: an unknown name that is no file either; no sha256 is known; the download failed; or the content
            is wrong, in which case what was downloaded has been removed. The message says what to fetch, from where,
            where to put it, and its sha256.
    """
    if named := _NAMED_HASH.fullmatch(str(name_or_path)):
        name_or_path, sha256 = named["name"], named["sha256"]
    sha256 = sha256.lower() if sha256 else None
    if str(name_or_path) not in WEIGHTS:
        path = Path(name_or_path).expanduser()
        if not path.is_file():
            raise WeightsError(f"no weight file {path}; expected an existing file or one of {', '.join(WEIGHTS)}")
        if sha256 and (found := _sha256(path)) != sha256:
            raise WeightsError(f"{path}: found sha256 {found}, expected {sha256}: it is another file")
        return path
    weight = WEIGHTS[str(name_or_path)]
    target = (Path(cache_dir) if cache_dir is not None else default_cache()) / "weights" / weight.relative
    if sha256 and weight.sha256 not in (None, sha256):
        raise WeightsError(f"{weight.name} is published with sha256 {weight.sha256}, not {sha256}")
    expected = replace(weight, sha256=weight.sha256 or sha256)
    if target.is_file():
        found = _sha256(target)
        if expected.sha256 is None:
            raise WeightsError(
                f"{target} has sha256 {found}, and none is published for {weight.name}: nobody can tell whether "
                f"it is the right file. If you know that it is, write {name_or_path}#sha256={found}"
            )
        if found != expected.sha256:
            size = target.stat().st_size
            target.unlink()
            raise _wrong(expected, found, size, str(target))
    else:
        _download(str(name_or_path), expected, target, progress)
    return target


def _download(key: str, weight: WeightFile, target: Path, progress: bool) -> None:
    """Fetch to a temporary name beside the target, verify, then rename: readers never see half a file."""
    mirror = os.environ.get("VOKEN_WEIGHTS_URL")
    url = f"{mirror.rstrip('/')}/{weight.relative}" if mirror else weight.url
    if url is None:
        raise WeightsError(f"{weight.name} is not in the cache and has to be brought. {_advice(weight, target)}")
    if weight.sha256 is None:
        raise WeightsError(
            f"no sha256 is published for {weight.name}, so what {url} serves could not be verified; write "
            f"{key}#sha256=HEX with the one that you expect"
        )
    try:
        with replacing(target) as file:
            found = _fetch(url, file, weight.name, progress)
            if found != weight.sha256:
                raise _wrong(weight, found, file.tell(), f"what {url} served")
    except _NETWORK_ERRORS as error:
        raise WeightsError(
            f"could not download {weight.name} from {url} ({error}). {_advice(weight, target)}"
        ) from error
    except OSError as error:
        raise WeightsError(
            f"could not write {target} ({error}); set VOKEN_CACHE to a folder that can be written"
        ) from error


def _fetch(url: str, file: IO[bytes], name: str, progress: bool) -> str:
    """Write what `url` serves into `file`; returns its sha256."""
    request = urllib.request.Request(url, headers={"User-Agent": "voken"})
    digest, received = hashlib.sha256(), 0
    with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
        total = content_length(response.headers.get("Content-Length"), url)
        with tqdm(total=total, unit="B", unit_scale=True, unit_divisor=1024, desc=name, disable=not progress) as bar:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                digest.update(chunk)
                received += len(chunk)
                bar.update(len(chunk))
                if received > LARGEST:
                    raise WeightsError(f"{url} sends more than {LARGEST} bytes, the most a weight file may have")
    if total is not None and received < total:
        raise ConnectionError(f"the connection ended after {received} of {total} bytes")
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_length(text: str | None, url: str, largest: int = LARGEST) -> int | None:
    """The bytes that a server announces; None where it does not.

    Args:
        text: of the header Content-Length.
        url: for the message.
        largest: the most that is fetched.

    Raises:
        WeightsError: no number, or too large a one.
    """
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal()) or len(text) > 20:
        raise WeightsError(f"{url} announces a Content-Length of {text[:40]!r}; expected a number of bytes")
    if int(text) > largest:
        raise WeightsError(f"{url} announces {text} bytes; expected at most {largest}")
    return int(text)


def _wrong(weight: WeightFile, found: str, size: int, origin: str) -> WeightsError:
    """The error for content that is not what is published, with both checksums; the caller removes the file."""
    return WeightsError(
        f"{origin} is not {weight.name}: found sha256 {found} ({size} bytes), expected {weight.sha256}. It has "
        f"been removed; run again to download it from {weight.source}, or put the right file there"
    )


def _advice(weight: WeightFile, target: Path) -> str:
    checksum = f" (sha256 {weight.sha256})" if weight.sha256 else ""
    address = f", {weight.url}" if weight.url else ""
    return f"Without network: get {weight.name} from {weight.source}{address}, and put it at {target}{checksum}"
