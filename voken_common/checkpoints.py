"""What the checkpoints of both frameworks have in common: where they lie, what a step says of itself, which is used.

A work directory holds its steps in `checkpoints`: `<step>/` with Orbax items (JAX) or `<step>.pt` (PyTorch). Either way
a step carries its configuration, so that a command needs nothing but the checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from voken_common.config import AnyConfig, from_json
from voken_common.errors import CheckpointError
from voken_common.generator_schema import GeneratorCheckpointConfig, GeneratorConfig
from voken_common.schema import CheckpointConfig, Config

__all__ = ["FOLDER", "LAYOUT", "CheckpointError", "Meta", "Step", "Weights", "choose_step", "kept_steps"]

FOLDER = "checkpoints"
LAYOUT = 1
LOWER_IS_BETTER = ("l1", "lpips", "loss")
Weights = Literal["ema", "raw"]
Step = int | Literal["latest", "best"]
ITEMS: dict[Weights, str] = {"ema": "generator_ema", "raw": "generator"}
FIXED_FOR_A_RUN = ("kind", "model", "quantizer", "discriminator", "statistics_scope", "precision")


@dataclasses.dataclass(frozen=True)
class Meta:
    """What a step says about itself."""

    config: AnyConfig
    step: int
    metrics: dict[str, float]

    @property
    def tokenizer(self) -> Config:
        """The configuration of a tokenizer's checkpoint.

        Raises:
            CheckpointError: it is one of a generator.
        """
        if not isinstance(self.config, Config):
            raise CheckpointError(f"found the checkpoint of generator {self.config.name}, expected one of a tokenizer")
        return self.config

    @property
    def generator(self) -> GeneratorConfig:
        """The configuration of a generator's checkpoint.

        Raises:
            CheckpointError: it is one of a tokenizer.
        """
        if not isinstance(self.config, GeneratorConfig):
            raise CheckpointError(f"found the checkpoint of tokenizer {self.config.name}, expected one of a generator")
        return self.config

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they are written."""
        config = self.config.model_dump(mode="json")
        return {"layout": LAYOUT, "step": self.step, "metrics": self.metrics, "config": config}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], origin: str) -> Meta:
        """Inverse of `to_dict`; `origin` is the file for messages.

        Raises:
            CheckpointError: another layout, or no such record.
            ConfigError: the configuration is not one of this version.
        """
        if values.get("layout") != LAYOUT:
            raise CheckpointError(f"{origin} has layout {values.get('layout')}, this version reads layout {LAYOUT}")
        missing = {"config", "step", "metrics"} - set(values)
        if missing:
            raise CheckpointError(f"{origin} lacks {', '.join(sorted(missing))}: it is damaged, use another step")
        return cls(from_json(json.dumps(values["config"]), origin=origin), int(values["step"]), dict(values["metrics"]))


def choose_step(steps: Mapping[int, Path], step: Step, read_meta: Callable[[Path], Meta]) -> Path:
    """The place of one of several steps (at least one).

    Args:
        steps: number -> place.
        step: a number, `latest`, or `best` by the run's own metric.
        read_meta: reads what a place says about itself.

    Raises:
        CheckpointError: that step is not there, or none was validated.
    """
    if step == "latest":
        return steps[max(steps)]
    if step == "best":
        metas = {number: read_meta(path) for number, path in steps.items()}
        metric = metas[max(metas)].config.checkpoint.best_metric
        scored = {number: meta.metrics[metric] for number, meta in metas.items() if metric in meta.metrics}
        if not scored:
            raise CheckpointError(
                f"no step of {sorted(steps)} was validated, so none is the best by {metric}; use latest"
            )
        return steps[_ranked(scored, metric)[0]]
    if step not in steps:
        raise CheckpointError(
            f"step {step} is not in {next(iter(steps.values())).parent}: the steps there are {sorted(steps)}; expected "
            "latest, best or a number"
        )
    return steps[step]


def kept_steps(
    metrics: Mapping[int, Mapping[str, float]], config: CheckpointConfig | GeneratorCheckpointConfig
) -> set[int]:
    """Which of several steps (number -> metrics of its validation, if any) are kept: the last ones and the best."""
    scored = {step: values[config.best_metric] for step, values in metrics.items() if config.best_metric in values}
    best = _ranked(scored, config.best_metric)[: config.keep_best]
    return set(sorted(metrics)[-config.keep_last :]) | set(best)


def describe_missing(path: Path, command: str, place: str) -> str:
    """The message for a folder without any step."""
    found = ", ".join(sorted(p.name for p in path.glob("*"))[:8]) if path.is_dir() else "no such folder"
    return (
        f"no checkpoint in {path} (found: {found or 'an empty folder'}); expected a work directory with "
        f"{FOLDER}/{place} as `{command}` writes it"
    )


def check_same_run(saved: AnyConfig, config: AnyConfig) -> list[str]:
    """Sections that changed since the checkpoint; a run continues only under the networks it was made with.

    Raises:
        CheckpointError: one of the fixed sections changed.
    """
    before, now = saved.model_dump(mode="json"), config.model_dump(mode="json")
    changed = [key for key in now if before.get(key) != now[key]]
    for key in FIXED_FOR_A_RUN:
        if key in changed:
            raise CheckpointError(
                f"the checkpoint was trained with {key} {before.get(key)}, this run has {now[key]}; use another "
                "--workdir, or the settings of the checkpoint (its config.yaml)"
            )
    return changed


def _ranked(scored: Mapping[int, float], metric: str) -> list[int]:
    """Steps from the best on; of equals the later one first."""
    sign = 1 if metric in LOWER_IS_BETTER else -1
    ordered: Iterable[int] = sorted(scored, key=lambda step: (sign * scored[step], -step))
    return list(ordered)
