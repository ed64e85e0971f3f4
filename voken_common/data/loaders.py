"""Choose the loader that a configuration needs: images or clips."""

from __future__ import annotations

from typing import TYPE_CHECKING

from voken_common.config.schema.data import DataConfig
from voken_common.data.images import TrainSample, ValidationRow
from voken_common.data.sources.base import ImageSource

if TYPE_CHECKING:
    from voken_common.data.clips import TrainClip, ValidationClip


def training_samples(source: ImageSource, config: DataConfig) -> TrainSample | TrainClip:
    """From (sample index, random generator) to a training sample."""
    if config.is_video:
        # Imported where it is needed, as the sources are.
        from voken_common.data.clips import TrainClip

        return TrainClip(source, config)
    return TrainSample(source, config)


def validation_rows(source: ImageSource, config: DataConfig, count: int) -> ValidationRow | ValidationClip:
    """Turn a position of the evaluation order into a row of validation."""
    if config.is_video:
        from voken_common.data.clips import ValidationClip

        return ValidationClip(source, config, count)
    return ValidationRow(source, config, count)
