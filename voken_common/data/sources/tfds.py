"""Images of TensorFlow Datasets, read at random from array_record files without TensorFlow."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int32

from voken_common.config.schema.data import TFDSConfig
from voken_common.data.errors import DataError, ImageDecodeError
from voken_common.data.labels import class_names
from voken_common.data.sources.base import ImageSource
from voken_common.data.storage.array_records import system_error
from voken_common.data.storage.files import is_url
from voken_common.untrusted.text import shown

_FEATURE = re.compile(r"tensorflow_datasets(\.core)?\.features(\.[a-z0-9_]+)*\.[A-Za-z0-9_]+")
_ADVICE = """\
Prepare it once, on any machine that has room, as files with random access:
  import tensorflow_datasets as tfds
  tfds.builder({name!r}, data_dir={data_dir!r}, file_format="array_record").download_and_prepare()
and name that data_dir in the configuration."""


class TFDSSource(ImageSource):
    """A split of a prepared data set; images stay encoded until the pipeline decodes them.

    Raises:
      DataError: tensorflow-datasets is not installed; the set is unknown or not prepared as array_record; it has no
        such split, or no such image or label feature.
    """

    def __init__(self, config: TFDSConfig):
        try:
            import tensorflow_datasets as tfds
        except ImportError as error:
            raise DataError(
                "reading TFDS needs tensorflow-datasets, which is not installed: pip install 'voken[data]'"
            ) from error
        self._config = config
        advice = _ADVICE.format(name=config.name, data_dir=config.data_dir)
        if ":" in config.name:
            raise DataError(f"TFDS data set {config.name}: expected the name of a data set without a namespace")
        try:
            with _known_features(tfds.features.FeatureConnector):
                builder = tfds.builder(config.name, data_dir=config.data_dir)
        # Of a damaged folder the libraries that read it raise nearly anything.
        except Exception as error:
            reason = shown(next(iter(str(error).splitlines()), type(error).__name__), 400)
            raise DataError(f"cannot open the TFDS data set {config.name}: {reason}\n{advice}") from error
        if not builder.info.splits:
            raise DataError(
                f"TFDS data set {config.name} is not prepared: found nothing at {builder.data_path}.\n{advice}"
            )
        self._check_features(builder.info.features)
        label = None if config.label_key is None else builder.info.features[config.label_key]
        names = list(getattr(label, "names", None) or ())
        # A set that gives only the number of its classes calls them by their numbers.
        self.classes = () if names == [str(number) for number in range(len(names))] else class_names(names)
        self._numbers: Int32[np.ndarray, " k"] | None = None
        try:
            self._records: Any = builder.as_data_source(
                # Decoding features that nobody asked for may start programs: Pillow's and ffmpeg's.
                split=config.split,
                decoders=_skipping(builder.info.features, config.label_key, tfds.decode.SkipDecoding()),
            )
        except NotImplementedError as error:
            raise DataError(
                f"TFDS data set {config.name} at {builder.data_path} is prepared as "
                f"{builder.info.file_format.value}, which has no random access.\n{advice}"
            ) from error
        except ValueError as error:
            raise DataError(
                f"TFDS data set {config.name} has no split {config.split!r} ({error}); it has "
                f"{', '.join(builder.info.splits)}"
            ) from error
        if len(self._records) == 0:
            raise DataError(f"split {config.split!r} of the TFDS data set {config.name} is empty")
        self._fingerprint = _fingerprint(builder.info, config.split)
        place = os.fspath(builder.data_path)
        self._folder = None if is_url(place) else place

    def _check_features(self, features: Any) -> None:
        keys = {"image_key": self._config.image_key, "label_key": self._config.label_key}
        for field, key in keys.items():
            if key is not None and key not in features:
                raise DataError(
                    f"{field} is {key!r}, but the TFDS data set {self._config.name} has the features "
                    f"{', '.join(sorted(features))}"
                )

    def __len__(self) -> int:
        return len(self._records)

    def read(self, index: int) -> tuple[bytes, int]:
        """The encoded image, and its label or 0.

        Raises:
          OSError: its file cannot be read.
          ImageDecodeError: its record is damaged.
        """
        records = self._records
        try:
            record = records[index]
        except Exception as error:
            # array_record and the decoder of records raise nearly anything for damaged blocks.
            if (failed := system_error(error)) is None:
                raise ImageDecodeError(f"{self.key(index)}: damaged record: {type(error).__name__}: {error}") from error
            self._records = _reopened(records)
            raise failed from error
        label_key = self._config.label_key
        label = 0 if label_key is None else int(record[label_key])
        return record[self._config.image_key], int(
            self._numbers[label]
        ) if self._numbers is not None and label >= 0 else label

    def _renumber(self, numbers: Int32[np.ndarray, " k"]) -> None:
        self._numbers = numbers if self._numbers is None else numbers[self._numbers]

    def order_fingerprint(self) -> int:
        """Fingerprint of the data set's own description: no record is read."""
        return self._fingerprint

    def key(self, index: int) -> str:
        """Data set, split and index of the record."""
        return f"{self._config.name}/{self._config.split}[{index}]"

    def folder(self, index: int) -> str | None:
        """Return the folder of the data set."""
        return self._folder

    def describe(self) -> str:
        """One line for the log."""
        return f"TFDS {self._config.name}, split {self._config.split}: {len(self)} images"


@contextlib.contextmanager
def _known_features(connector: Any) -> Iterator[None]:
    """Within the block, a data set whose folder names a class of features outside of TFDS is refused.

    TFDS imports whatever module the folder names, and with it runs it, from the current folder too.
    """
    original = connector.__dict__["cls_from_name"]

    def only_known(kind: Any, name: str) -> Any:
        if not isinstance(name, str) or not _FEATURE.fullmatch(name):
            raise ValueError(
                f"it names the class {shown(name)} for a feature, which would be imported and so run; expected classes "
                "of tensorflow_datasets only"
            )
        return original.__get__(None, kind)(name)

    connector.cls_from_name = classmethod(only_known)
    try:
        yield
    finally:
        connector.cls_from_name = original


def _skipping(features: Any, kept: str | None, skip: Any) -> Any:
    """Decoders that leave all features as they are stored, but one."""
    if not isinstance(features, Mapping) and not hasattr(features, "items"):
        return skip
    return {key: _skipping(below, None, skip) for key, below in features.items() if key != kept}


def _fingerprint(info: Any, split: str) -> int:
    """CRC-32 of name, configuration and version, of the shards of a split and the records taken of each, and of the
    bytes of the splits that they are of; not of where they lie.
    """
    shards = [
        (os.path.basename(shard.filename), shard.skip, shard.take, shard.examples_in_shard)
        for shard in info.splits[split].file_instructions
    ]
    names = {name for name, *_ in shards}
    sizes = {name: int(whole.num_bytes) for name, whole in info.splits.items() if names & set(whole.filenames)}
    return zlib.crc32(json.dumps([info.full_name, shards, sizes], sort_keys=True).encode())


def _reopened(records: Any) -> Any:
    """Open the same records through new readers."""
    again = copy.copy(records)
    again.data_source = copy.copy(records.data_source)
    return again
