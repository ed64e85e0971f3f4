"""A trained work directory that the end-to-end tests share and do not change."""

import dataclasses
import functools
from pathlib import Path

import pytest

from tests.support.tiny import tiny_config
from voken_common.data.pipeline import TrainIterator
from voken_jax.training import run as trainer


@dataclasses.dataclass(frozen=True)
class Trained:
    """A finished run: its folder, configuration, last validation, and every batch it was fed."""

    workdir: Path
    config: object
    metrics: dict
    batches: list


def record_batches(monkeypatch, change=None):
    """Collect a copy of every batch that training takes; `change` edits them by number, counted from 1."""
    batches, original = [], TrainIterator.__next__

    def take(iterator):
        batch = original(iterator)
        batches.append(batch["image"].copy())
        if change is not None:
            change(len(batches), batch["image"])
        return batch

    monkeypatch.setattr(TrainIterator, "__next__", take)
    return batches


@pytest.fixture(scope="session", autouse=True)
def hurry():
    """Build each configuration once: compiling is most of these tests' time."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(trainer, "build", functools.cache(trainer.build))
        yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Six steps without a break."""
    folder = tmp_path_factory.mktemp("trained")
    config = tiny_config(folder)
    with pytest.MonkeyPatch.context() as monkeypatch:
        batches = record_batches(monkeypatch)
        metrics = trainer.train(config, folder / "run")
    return Trained(folder / "run", config, metrics, batches)
