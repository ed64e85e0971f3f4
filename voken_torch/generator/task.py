"""A generator's run as the training loop sees it: tokens and classes in, cross entropy, held-out loss, and samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from voken_common.config.schedules import build_schedule, total_steps
from voken_common.config.schema.generator import GeneratorConfig
from voken_common.training import generator_logs
from voken_common.training.log import RunLog
from voken_common.visual import grid
from voken_torch.device.runtime import Runtime
from voken_torch.device.transfer import on_device, one_ahead
from voken_torch.generator.frozen_tokenizer import FrozenTokenizer
from voken_torch.generator.step import (
    Batch,
    GeneratorState,
    GeneratorStep,
    create_generator_state,
    evaluation_generator,
)
from voken_torch.generator.validation import GeneratorValidator
from voken_torch.models.generator import Adaptive, Factorized
from voken_torch.optimization.finite import Metrics
from voken_torch.optimization.task import InPlaceTask
from voken_torch.parallel.sharding import process_count, process_index, processes, size_of


class GeneratorTask(InPlaceTask):
    """State, step and validator of a generator.

    Args:
        config: the run.
        per_epoch: steps of one epoch.
        runtime: this process's device.
        tokenizer: checkpoint of the tokenizer; None: where the configuration says.
    """

    config: GeneratorConfig
    state: GeneratorState
    seen_codes = None

    def __init__(self, config: GeneratorConfig, per_epoch: int, runtime: Runtime, tokenizer: Path | None = None):
        from voken_common.data.generator_data import open_held_out, with_origin

        self.runtime = runtime
        self.tokenizer = None if config.tokenizer is None else FrozenTokenizer(config, runtime, tokenizer)
        self.config = config = with_origin(config, None if self.tokenizer is None else self.tokenizer.fingerprint)
        self.held_out = open_held_out(config, process_index(), process_count()) if config.data.held_out else None
        self.total_steps = total_steps(config, per_epoch)
        everyone = processes(runtime.device)
        self.shown = generator_logs.shown(config)
        self.rates = _rates(config, runtime)
        self.schedule = build_schedule(config, per_epoch, self.total_steps)
        self.state = create_generator_state(config, runtime)
        self.program = GeneratorStep(config, self.state, self.schedule, self.total_steps, runtime)
        self.validator = GeneratorValidator(config, runtime)
        everyone.tell(
            "%s: %s parameters, %d steps, %d process(es) on %s",
            config.name,
            f"{size_of(self.state.generator):,}",
            self.total_steps,
            everyone.count,
            runtime.device,
        )

    def step(self, batch: Mapping[str, np.ndarray]) -> Metrics:
        """Make one step of AdamW."""
        return self.program(self.state, self.tokens(batch, on_device(batch, self.runtime.device)))

    def tokens(self, batch: Mapping[str, np.ndarray], tensors: Batch) -> Batch:
        """Tokens (B, T, S), labels (B,) and, if the batch has one, its mask; images are encoded.

        Args:
            batch: on the host, where its labels are checked: reading them from the device would wait for it.
            tensors: the same on the device.

        Raises:
            DataError: a label that the model has no class for.
        """
        from voken_common.data.generator_data import require_known_classes

        if "image" not in tensors:
            return tensors
        assert self.tokenizer is not None
        require_known_classes(self.config, int(batch["label"].max(initial=0)))
        tokens = {"tokens": self.tokenizer.encode(tensors["image"]), "labels": tensors["label"]}
        return tokens | {name: tensors[name] for name in tensors.keys() & {"mask"}}

    def logged(self, means: dict[str, float], number: int) -> dict[str, float]:
        """Add perplexities of the mean losses, learning rate and weight decay."""
        return generator_logs.with_schedules(self.config, means, self.schedule, number, self.total_steps)

    @property
    def validates(self) -> bool:
        """True if held-out tokens or images are set."""
        return self.held_out is not None

    def validate(self, log: RunLog, number: int) -> dict[str, float]:
        """Loss on held-out tokens with the averaged weights, if there are any, and a grid of decoded samples."""
        assert self.held_out is not None
        network = evaluation_generator(self.config, self.state, self.runtime)
        metrics = self.validator(network, self._held_out_batches())
        log.scalars(number, metrics, prefix="validation/")
        text = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        averaged = "EMA, " if self.state.generator_ema else ""
        log.message(f"step {number}  validation ({averaged}{self.held_out.samples} samples):  {text}")
        if process_index() == 0:
            self._show(network, log, number)
        return metrics

    def _held_out_batches(self) -> Iterator[Batch]:
        assert self.held_out is not None
        return (self.tokens(batch, tensors) for batch, tensors in one_ahead(self.held_out.batches, self.runtime.device))

    def _show(self, network: Factorized | Adaptive, log: RunLog, number: int) -> None:
        pictures = self.config.validation.pictures
        if self.tokenizer is None or not pictures:
            return
        labels = generator_logs.shown_labels(pictures, self.config.model.classes)
        log.picture(number, "samples", grid(self.tokenizer.decode(self.validator.sample(network, labels))))


def _rates(config: GeneratorConfig, runtime: Runtime) -> dict[str, float]:
    name = "cpu" if runtime.device.type == "cpu" else torch.get_device_module(runtime.device).get_device_name()
    return generator_logs.rates(config, name, process_count()) if process_index() == 0 else {}
