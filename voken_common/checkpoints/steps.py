"""Common part of the checkpoints of both frameworks: folders, the description of a step, the choice of a step.

A work directory holds its steps in `checkpoints`: `<step>/` with Orbax items (JAX) or `<step>.pt` (PyTorch). Either way
a step carries its configuration, so that a command needs nothing but the checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from voken_common.atomic_write import is_partial
from voken_common.causes import shortened
from voken_common.config.differences import changed_keys
from voken_common.config.loading import AnyConfig, from_json
from voken_common.config.schema.generator import GeneratorCheckpointConfig, GeneratorConfig
from voken_common.config.schema.run import CheckpointConfig
from voken_common.config.schema.tokenizer import Config
from voken_common.errors import CheckpointError, DamagedError, WorkdirError
from voken_common.untrusted.text import shown

__all__ = ["FOLDER", "LAYOUT", "CheckpointError", "Meta", "Step", "Weights", "choose_step", "kept_steps"]

logger = logging.getLogger("voken")

FOLDER = "checkpoints"
_BEGUN = re.compile(r"\d+\.orbax-checkpoint-tmp.*|\d+(\.pt)?\.dropped\.part")
"""Folders of steps that were being written or removed."""
ASIDE = "damaged_checkpoints"
"""Where a run that continues puts the damaged steps it passed over."""
LAYOUT = 1
LOWER_IS_BETTER = ("l1", "lpips", "lpips_alex", "lpips_vgg", "rfid", "loss")
Weights = Literal["ema", "raw"]
Step = int | Literal["latest", "best"]
Framework = Literal["jax", "torch"]
TITLES: dict[Framework, str] = {"jax": "JAX", "torch": "PyTorch"}
ITEMS: dict[Weights, str] = {"ema": "generator_ema", "raw": "generator"}
FIXED_FOR_A_RUN = (
    "kind",
    "model",
    "quantizer",
    "discriminator",
    "statistics_scope",
    "precision",
    "tokenizer_fingerprint",
    "class_names",
)
"""Sections and keys that decide what the weights are of; all of them but these:"""
FREE_IN_A_RUN = frozenset(
    [f"model.{name}dropout" for name in ("", "token_", "residual_", "feed_forward_", "label_")]
    + [f"quantizer.{name}_weight" for name in ("sample_entropy", "batch_entropy", "entropy", "commitment", "quantizer")]
    + [f"quantizer.{name}" for name in ("enlarge_ratio", "enlarge_steps", "temperature", "beta")]
    + [f"quantizer.{name}" for name in ("use_entropy", "memory_budget_mib", "shard_codes", "token_bits")]
    + ["precision.compute_dtype", "precision.remat"]
)


class KindError(CheckpointError):
    """A checkpoint of another kind of model than the caller needs."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """Progress of a run besides its state, with which it continues as if it had never stopped.

    Attributes:
        averages: metric -> sum, count and dtype of the sum since the last logged step.
        skipped: batches that were skipped because they were not finite, since the run began.
    """

    averages: Mapping[str, tuple[float, int, str]] = dataclasses.field(default_factory=dict)
    skipped: int = 0


@dataclasses.dataclass(frozen=True)
class Meta:
    """Description of a step."""

    config: AnyConfig
    step: int
    metrics: dict[str, float]
    progress: Progress = Progress()

    @property
    def tokenizer(self) -> Config:
        """The configuration of a tokenizer's checkpoint.

        Raises:
            CheckpointError: it is one of a generator.
        """
        if not isinstance(self.config, Config):
            raise KindError(f"found the checkpoint of generator {self.config.name}, expected one of a tokenizer")
        return self.config

    @property
    def generator(self) -> GeneratorConfig:
        """The configuration of a generator's checkpoint.

        Raises:
            CheckpointError: it is one of a tokenizer.
        """
        if not isinstance(self.config, GeneratorConfig):
            raise KindError(f"found the checkpoint of tokenizer {self.config.name}, expected one of a generator")
        return self.config

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they are written."""
        config = self.config.model_dump(mode="json")
        progress = {
            "averages": {k: list(v) for k, v in self.progress.averages.items()},
            "skipped": self.progress.skipped,
        }
        return {
            "layout": LAYOUT,
            "step": self.step,
            # JSON knows no other numbers, and nothing is ranked by them.
            "metrics": {name: value for name, value in self.metrics.items() if math.isfinite(value)},
            "config": config,
            "progress": progress,
        }

    @classmethod
    def from_dict(cls, values: Any, origin: str) -> Meta:
        """Inverse of `to_dict` that checks what it is given; `origin` is the file for messages.

        Raises:
            CheckpointError: another layout, or no such record.
            ConfigError: the configuration is not one of this version.
        """
        if not isinstance(values, Mapping):
            raise CheckpointError(f"{origin} holds {type(values).__name__}, no record: it is damaged, use another step")
        if values.get("layout") != LAYOUT:
            raise CheckpointError(f"{origin} has layout {values.get('layout')}, this version reads layout {LAYOUT}")
        missing = {"config", "step", "metrics"} - set(values)
        if missing:
            raise CheckpointError(f"{origin} lacks {', '.join(sorted(missing))}: it is damaged, use another step")
        if not isinstance(values["config"], Mapping):
            raise CheckpointError(f"{origin} holds no configuration: it is damaged, use another step")
        try:
            text = json.dumps(values["config"])
        except (TypeError, ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{origin} holds no plain configuration ({type(error).__name__}): it is damaged, use another step"
            ) from error
        config = from_json(text, origin=origin)
        try:
            # Steps of earlier versions have none.
            saved = values.get("progress") or {"averages": {}, "skipped": 0}
            averages = {name: (float(a), int(n), str(kind)) for name, (a, n, kind) in saved["averages"].items()}
            metrics = {str(name): float(value) for name, value in values["metrics"].items()}
            step, skipped = int(values["step"]), int(saved["skipped"])
            if not 0 <= step < 2**63 or not 0 <= skipped < 2**63:
                raise ValueError(f"step {shown(step)}, {shown(skipped)} skipped")
            return cls(config, step, metrics, Progress(averages, skipped))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise CheckpointError(
                f"{origin} holds what no run writes ({type(error).__name__}: {error}): it is damaged, use another step"
            ) from error


Problems = Callable[[Path], list[str]]
"""List the faults of a step, one line each; empty for a good one."""


def choose_step(
    steps: Mapping[int, Path], step: Step, read_meta: Callable[[Path], Meta], problems: Problems = lambda _: []
) -> Path:
    """Return the path of one of several steps (at least one).

    Damaged steps are passed over with a warning, unless they are asked for by number.

    Args:
        steps: number -> place.
        step: a number, `latest`, or `best` by the run's own metric.
        read_meta: reads what a place says about itself.
        problems: looks for damage; not at all by default.

    Raises:
        CheckpointError: that step is not there, or none was validated.
        DamagedError: it is damaged, or all are.
    """
    if step == "latest":
        return steps[newest_good(steps, problems)[0]]
    if step == "best":
        return _best_good(dict(steps), read_meta, problems)
    if step not in steps:
        raise CheckpointError(
            f"step {step} is not in {next(iter(steps.values())).parent}: the steps there are {sorted(steps)}; expected "
            "latest, best or a number"
        )
    require_good(steps[step], problems(steps[step]), sorted(set(steps) - {step}))
    return steps[step]


def newest_good(steps: Mapping[int, Path], problems: Problems) -> tuple[int, list[int]]:
    """Return the newest step that is not damaged and the damaged ones after it, which are reported.

    Raises:
        DamagedError: all of them are damaged.
    """
    damaged: dict[int, list[str]] = {}
    for number in sorted(steps, reverse=True):
        found = problems(steps[number])
        if not found:
            for bad, texts in damaged.items():
                logger.warning("step %d is damaged: %s. Step %d is used instead", bad, listed(texts), number)
            return number, sorted(damaged)
        damaged[number] = found
    folder = next(iter(steps.values())).parent
    texts = [f"step {number}: {listed(texts)}" for number, texts in damaged.items()]
    raise DamagedError(
        f"all {len(damaged)} step(s) in {folder} are damaged, so there is nothing to go on from ({'; '.join(texts)}). "
        "Restore them from a copy, or begin anew with another --workdir"
    )


def _best_good(steps: dict[int, Path], read_meta: Callable[[Path], Meta], problems: Problems) -> Path:
    metas: dict[int, Meta] = {}
    for number, path in list(steps.items()):
        try:
            metas[number] = read_meta(path)
        # Damage may leave a configuration that cannot be, too.
        except ValueError as error:
            logger.warning("step %d is passed over: %s", number, error)
            del steps[number]
    if not metas:
        raise DamagedError("none of the steps can be read, so none is the best")
    metric = metas[max(metas)].config.checkpoint.best_metric
    scored = _finite({number: meta.metrics for number, meta in metas.items()}, metric)
    if not scored:
        raise CheckpointError(f"no step of {sorted(steps)} was validated, so none is the best by {metric}; use latest")
    for number in _ranked(scored, metric):
        found = problems(steps[number])
        if not found:
            return steps[number]
        logger.warning("step %d, the best by %s, is damaged: %s. The next best is used", number, metric, listed(found))
    raise DamagedError(f"all validated steps of {sorted(scored)} are damaged; use latest")


def require_good(place: Path, problems: list[str], others: list[int]) -> None:
    """Raise DamagedError if something is wrong with a step that was asked for."""
    if problems:
        rest = f"other steps there: {others}" if others else "there is no other step there"
        raise DamagedError(
            f"{place} is damaged: {listed(problems)}. Restore it from a copy, or use another one ({rest})"
        )


def set_aside(workdir: Path, places: Iterable[Path]) -> None:
    """Move damaged steps out of the way of those that will be written again; they are kept to be looked at."""
    for place in places:
        target = workdir / ASIDE / place.name
        number = 2
        while target.exists():
            target, number = target.with_name(f"{place.stem}-{number}{place.suffix}"), number + 1
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(place, target)
        logger.warning("%s was moved to %s", place, target)


def remove_half_written(folder: Path) -> None:
    """Remove what a run that was killed had begun to write; only for the one run that holds the directory.

    Only names that runs give go, and a link with such a name, not what it leads to.
    """
    for place in folder.iterdir() if folder.is_dir() else ():
        if not (_BEGUN.fullmatch(place.name) or is_partial(place.name)):
            continue
        logger.info("removing %s, which a run that was killed had not finished", place)
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place, ignore_errors=True)
        else:
            place.unlink(missing_ok=True)


def failed_write(step: int, folder: Path, error: Exception, intact: list[int]) -> CheckpointError:
    """The error for a step that could not be written."""
    stat = os.statvfs(folder) if folder.is_dir() else None
    free = f"{stat.f_bavail * stat.f_frsize / 2**30:.2f} GiB are free there" if stat else "the folder is gone"
    return CheckpointError(
        f"step {step} could not be written to {folder} ({type(error).__name__}: {shortened(error)}); {free}. Steps "
        f"written before are intact: {intact or 'none'}. Make room or correct the permissions, and run the same "
        "command again"
    )


def listed(texts: list[str]) -> str:
    """The first lines of a description of damage, and how many more there are."""
    return "; ".join(texts[:3]) + (f"; and {len(texts) - 3} more" if len(texts) > 3 else "")


def kept_steps(
    metrics: Mapping[int, Mapping[str, float]], config: CheckpointConfig | GeneratorCheckpointConfig
) -> set[int]:
    """Choose the steps to keep, the last ones and the best, from number -> metrics of validation, if any."""
    scored = _finite(metrics, config.best_metric)
    best = _ranked(scored, config.best_metric)[: config.keep_best]
    return set(sorted(metrics)[-config.keep_last :]) | set(best)


def describe_missing(path: Path, command: str, place: str) -> str:
    """The message for a folder without any step."""
    found = ", ".join(sorted(p.name for p in path.glob("*"))[:8]) if path.is_dir() else "no such folder"
    wanted: Framework = "jax" if "voken_jax" in command else "torch"
    if (other := _framework_of(path)) is not None and other != wanted:
        return (
            f"{path} holds a run of {TITLES[other]}, and this is {TITLES[wanted]}: convert it ("
            f"{_conversion(path, wanted)}), or use {TITLES[other]}"
        )
    return (
        f"no checkpoint in {path} (found: {found or 'an empty folder'}); expected a work directory with "
        f"{FOLDER}/{place} as `{command}` writes it"
    )


def require_framework(workdir: Path, framework: Framework) -> None:
    """Raise WorkdirError if a work directory holds a run of the other framework, which it belongs to."""
    if (other := _framework_of(workdir)) not in (None, framework):
        title = TITLES[framework]
        raise WorkdirError(
            f"{workdir} holds a run of {other and TITLES[other]}, and this one is in {title}: a work directory belongs "
            f"to one framework. Use another --workdir; to go on from that run in {title}, convert it first: "
            f"{_conversion(workdir, framework)}"
        )


def _framework_of(workdir: Path) -> Framework | None:
    """The framework whose steps lie in a work directory; None: none do."""
    names = [path.name for path in (workdir / FOLDER).iterdir()] if (workdir / FOLDER).is_dir() else []
    if any(map(str.isdecimal, names)):
        return "jax"
    return "torch" if any(re.fullmatch(r"\d+\.pt", name) for name in names) else None


def _conversion(workdir: Path, framework: Framework) -> str:
    place = str(workdir).rstrip("/")
    return f"voken convert {place} {place}_{framework} --to {'torch' if framework == 'torch' else 'orbax'}"


def check_same_run(saved: AnyConfig, config: AnyConfig) -> list[str]:
    """List the changes since the checkpoint, a text per key; a run continues only with the networks it was made with.

    Raises:
        CheckpointError: a key changed that decides what the weights are of.
    """
    before, now = saved.model_dump(mode="json"), config.model_dump(mode="json")
    # Earlier versions did not keep where the tokens of a generator came from.
    unknown = [key for key in ("tokenizer_fingerprint", "class_names") if not before.get(key)]
    changed = {key: values for key, values in changed_keys(before, now).items() if key not in unknown}
    fixed = [key for key in changed if key.split(".")[0] in FIXED_FOR_A_RUN and key not in FREE_IN_A_RUN]
    if fixed:
        # A run of another kind differs in everything else, too.
        fixed = ["kind"] if "kind" in fixed else fixed
        lines = [f"{key} {changed[key][0]}, this run has {changed[key][1]}" for key in fixed]
        raise CheckpointError(
            f"the checkpoint was trained with {'; with '.join(lines)}; use another --workdir, or the settings of the "
            "checkpoint (its config.yaml)"
        )
    return [f"{key} (was {old}, is {new})" for key, (old, new) in changed.items()]


def _finite(metrics: Mapping[int, Mapping[str, float]], metric: str) -> dict[int, float]:
    """Step -> value of a metric, where it was measured and is a finite number."""
    return {step: values[metric] for step, values in metrics.items() if math.isfinite(values.get(metric, math.nan))}


def _ranked(scored: Mapping[int, float], metric: str) -> list[int]:
    """Steps from the best on; of equals the later one first."""
    sign = 1 if metric in LOWER_IS_BETTER else -1
    ordered: Iterable[int] = sorted(scored, key=lambda step: (sign * scored[step], -step))
    return list(ordered)
