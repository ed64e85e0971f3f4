"""A look through a small folder before a run begins: a file that is no image is found in seconds, not after compiling.

Every file's header is read first, then as many images are decoded as a few seconds allow. Larger sets, and what lies on
object stores, are not looked through.
"""

from __future__ import annotations

import concurrent.futures
import logging
import time
from collections.abc import Callable

from voken_common.config.schema.data import DataConfig
from voken_common.data.bad_images import BadImage, BadImageLimit
from voken_common.data.decode import identified, open_image, reason_of
from voken_common.data.errors import ImageDecodeError
from voken_common.data.sources.base import ImageSource
from voken_common.data.sources.build import build_source
from voken_common.data.sources.folder import FileSource, ImageFolder, ListFile

logger = logging.getLogger("voken.data")

SMALL = 5000
"""Files; reading the headers of so many on a local disk takes about a second."""
SECONDS = 3.0
"""Each of the two looks ends after this."""
_THREADS = 8


def look_through(config: DataConfig, source: ImageSource | None = None) -> list[BadImage]:
    """Look through the sources of a run, if they are small folders or lists of images.

    Args:
      config: the `data` section.
      source: an opened `config.train`, to save opening it twice.

    Returns:
      what is bad in the training source, as far as was seen.

    Raises:
      TooManyBadImagesError: more than allowed is bad; the message names the files.
      DataError: a source cannot be opened.
    """
    training = build_source(config.train) if source is None else source
    found = _look(training, config)
    if config.validation is not None and config.validation != config.train:
        _look(build_source(config.validation), config)
    return found


def _look(source: ImageSource, config: DataConfig) -> list[BadImage]:
    if not isinstance(source, ImageFolder | ListFile) or len(source) > SMALL:
        return []
    bad: dict[int, str] = {}
    images: list[BadImage] = []
    order = [source.evaluation_index(rank) for rank in range(len(source))]
    for look in (_header_problem, _problem):
        todo = [index for index in order if index not in bad]
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            until = time.monotonic() + SECONDS
            for index, problem in zip(todo, pool.map(_before(until, look, source, config), todo), strict=True):
                if problem is not None:
                    bad[index] = problem
        images = [BadImage(index, reason) for index, reason in bad.items()]
        BadImageLimit(len(source), config.max_bad_fraction).check(images)
    for image in images:
        logger.warning("%s; it will be passed over", image.reason)
    return images


def _before(
    until: float, look: Callable[[FileSource, DataConfig, int], str | None], source: FileSource, config: DataConfig
) -> Callable[[int], str | None]:
    def looked(index: int) -> str | None:
        return look(source, config, index) if time.monotonic() < until else None

    return looked


def _header_problem(source: FileSource, config: DataConfig, index: int) -> str | None:
    path = source.key(index)
    try:
        with identified(path):
            return None
    # As where images are decoded: damaged files make the decoders raise nearly anything.
    except Exception as error:
        return f"{path}: {reason_of(error)}"


def _problem(source: FileSource, config: DataConfig, index: int) -> str | None:
    path = source.key(index)
    try:
        open_image(path, name=path, exif_rotate=config.exif_rotate)
    except ImageDecodeError as error:
        return str(error)
    return None
