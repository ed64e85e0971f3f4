"""Faults that a generator meets: its state, data and step are not a tokenizer's, so they are made and not assumed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from faults.frameworks import STEPS, TINY, Framework, must_equal, require
from faults.inputs import changed, dropped

GRID, CODES, CLASSES = 4, 32, 3
POISON = CODES - 1
"""A batch of this token alone makes the loss infinite, see `poisoned`; no shard holds it."""


def on(fault: Callable[[Framework], str]) -> Callable[[Framework], str]:
    """A fault of a tokenizer's run, met by a generator's."""
    return lambda framework: fault(of(framework))


def of(framework: Framework) -> Framework:
    """The generator of a framework, with a folder of its own; the same at every call."""
    if framework.generator is None:
        scratch = framework.scratch / "generator"
        # An earlier row may have made it and then failed: the next one shall tell the same cause, and not this folder.
        scratch.mkdir(exist_ok=True)
        framework.generator = Framework(framework.name, scratch, _mapping(_shards(scratch / "tokens")))
    return framework.generator


def _mapping(shards: Path) -> dict[str, Any]:
    small = {"grid": GRID, "classes": CLASSES, "layers": 2, "heads": 2, "width": 16, "multiple_of": 16}
    return {
        "kind": "generator",
        "name": "tiny_generator",
        "model": {"network": "adaptive", "vocabularies": [CODES], **small},
        "optimizer": {"learning_rate": 1e-2, "ema_decay": 0.9},
        "data": {"train": str(shards)},
        "training": TINY["training"],
        "checkpoint": TINY["checkpoint"],
        "sampling": {"scale": [1.0], "temperature": [1.0], "top_k": [0], "top_p": [1.0]},
    }


def _shards(folder: Path, count: int = 40) -> Path:
    """Tokens that depend on the class."""
    from voken_common.data.tokens.format import Record, TokenInfo, TokenizerInfo
    from voken_common.data.tokens.shards import write_token_shards

    draw = np.random.default_rng(0)
    tokenizer = TokenizerInfo(name="tiny", reference="made up", fingerprint="0" * 64, config=TINY)
    info = TokenInfo(
        grid=(GRID, GRID),
        vocabularies=(CODES,),
        tokenizer=tokenizer,
        source={"made": "up"},
        samples=count,
        samples_per_shard=16,
    )
    tokens = [9 * (i % CLASSES) + draw.integers(0, 4, (GRID**2, 1)) for i in range(count)]
    write_token_shards(folder, info, [Record(t, i % CLASSES, str(i)) for i, t in enumerate(tokens)])
    return folder


@contextmanager
def poisoned(framework: Framework, *numbers: int) -> Iterator[None]:
    """The loss of the batches of these numbers (from 1) is not finite."""
    from voken_common.data.tokens.pipeline import TokenIterator

    step = __import__(f"voken_{framework.name}.generator.step", fromlist=["token_losses"])
    original = step.token_losses

    def token_losses(logits: Any, tokens: Any) -> Any:
        total, metrics = original(logits, tokens)
        fine = (tokens != POISON).any()
        return total / fine, {**metrics, "loss": metrics["loss"] / fine}

    def poison(batch: dict[str, np.ndarray]) -> None:
        batch["tokens"] = np.full_like(batch["tokens"], POISON)

    with mock.patch.object(step, "token_losses", token_losses), changed(TokenIterator, poison, *numbers):
        yield


def skipped(framework: Framework) -> str:
    """Up to `health.max_skipped` batches that are not finite are skipped as if never drawn; one more stops the run."""
    from voken_common.data.tokens.pipeline import TokenIterator

    generator, allowed = of(framework), "health.max_skipped=2"
    workdir, without = generator.scratch / "skipped", generator.scratch / "without"
    with poisoned(generator, 4, 9):
        generator.run(workdir, allowed).must(0, "step 4: not finite: grad_norm, loss", "2 of at most 2")
    with dropped(TokenIterator, 4, 9):
        generator.run(without, allowed).must(0)
    must_equal(generator.contents(workdir, STEPS), generator.contents(without, STEPS))
    stopped = generator.scratch / "stopped"
    with poisoned(generator, 4, 6, 8):
        generator.run(stopped, allowed).must(3, "step 6: not finite: ", "after 2 skipped batch(es)")
        require(generator.steps(stopped)[-1] == 4, f"steps {generator.steps(stopped)}")
        kept = str(stopped / "failed_batch_6.npz")
        generator.run(stopped, allowed, options=("--replay", kept)).must(0, "weights of step 4", "<- not finite")
    return "2 skipped, the third stops and is replayed"
