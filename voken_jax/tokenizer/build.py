"""The one place that builds a tokenizer's run: networks, optimizer, abstract state, its shardings, and the step."""

from __future__ import annotations

from typing import NamedTuple

import optax
from jax.sharding import Mesh

from voken_common.config.schedules import Schedule, build_schedule, total_steps
from voken_common.config.schema.tokenizer import Config
from voken_jax.optimization.optim import build_optimizer
from voken_jax.parallel.sharding import check_batch, make_mesh, shardings_of
from voken_jax.tokenizer.state import Players, TrainState, abstract_state, build_players, create_state
from voken_jax.tokenizer.step import Perceptual, TokenizerStep


class TokenizerRun(NamedTuple):
    """A run before its first step; nothing is allocated.

    Attributes:
        config: the run.
        mesh: axes (data, fsdp, model).
        total_steps: its length.
        schedule: learning-rate factor by step.
        players: both networks.
        optimizer: of either player.
        abstract: shapes, dtypes and shardings of the state, as ShapeDtypeStructs.
        step: the compiled step of both players.
    """

    config: Config
    mesh: Mesh
    total_steps: int
    schedule: Schedule
    players: Players
    optimizer: optax.GradientTransformation
    abstract: TrainState
    step: TokenizerStep

    def create_state(self) -> TrainState:
        """Create a fresh state, born sharded."""
        return create_state(self.config, self.players, self.optimizer, self.mesh)


def build_run(
    config: Config, per_epoch: int = 1, perceptual: Perceptual | None = None, mesh: Mesh | None = None
) -> TokenizerRun:
    """Build a tokenizer's run for training, a dry run, a replay or a test.

    Args:
        config: the run.
        per_epoch: steps of one epoch.
        perceptual: LPIPS, or None to train without.
        mesh: the devices; by default all there are, along the axes of the configuration.

    Raises:
        ValueError: the batch or the mesh does not fit the devices.
    """
    mesh = make_mesh(config.mesh) if mesh is None else mesh
    check_batch(config, mesh)
    total = total_steps(config, per_epoch)
    schedule = build_schedule(config, per_epoch, total)
    players, optimizer = build_players(config), build_optimizer(config.optimizer, schedule)
    abstract = abstract_state(config, players, optimizer, mesh)
    step = TokenizerStep(config, players, optimizer, mesh, shardings_of(abstract), perceptual)
    return TokenizerRun(config, mesh, total, schedule, players, optimizer, abstract, step)
