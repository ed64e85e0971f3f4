"""The training data of a run: images, or the tokens (or images to encode) of a generator, by process."""

from __future__ import annotations

from typing import Any

from voken_common.config.loading import AnyConfig
from voken_common.config.schema.generator import GeneratorConfig
from voken_common.config.schema.tokenizer import Config
from voken_common.processes import Processes


def open_data(config: AnyConfig, processes: Processes) -> Any:
    """Open the training data as an iterator over this process's batches that remembers its `source`.

    Raises:
        DataError: it is not there, or not what the model is for.
    """
    return _open_images(config, processes) if isinstance(config, Config) else _open_tokens(config, processes)


def _open_images(config: Config, processes: Processes) -> Any:
    # Imported late, here and below: Grain loads JAX where JAX is installed.
    from voken_common.data.inspection import look_through
    from voken_common.data.pipeline import build_train_iterator
    from voken_common.data.sources.build import build_source

    source = build_source(config.data.train)
    processes.tell("training on %s", source.describe())
    if config.data.validation is None:
        processes.tell("data.validation is not set: no validation, no pictures")
    look_through(config.data, source)
    return build_train_iterator(
        config.data,
        batch_size_per_process=config.training.batch_size // processes.count,
        seed=config.seed,
        process_index=processes.index,
        process_count=processes.count,
        source=source,
    )


def _open_tokens(config: GeneratorConfig, processes: Processes) -> Any:
    from voken_common.data.generator_data import describe_training, open_training

    iterator = open_training(config, processes.index, processes.count)
    processes.tell("%s", describe_training(config, iterator))
    if not config.data.held_out:
        processes.tell("no held-out data is set: no validation, no pictures")
    return iterator


def validation_batches(config: Config, processes: Processes) -> Any:
    """Open a tokenizer's held-out images, this process's share of them, once through and without labels."""
    from voken_common.data.pipeline import build_validation_batches

    return build_validation_batches(
        config.data,
        batch_size=config.validation.batch_size // processes.count,
        process_index=processes.index,
        process_count=processes.count,
        max_images=config.validation.max_images,
        labelled=False,
    )
