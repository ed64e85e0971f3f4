"""`--dry-run`: build and compile a configuration without data or weights, and report what a step will cost."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from voken_common.schedules import build_schedule
from voken_common.schema import Config
from voken_jax.optim import build_optimizer
from voken_jax.perceptual import build_lpips
from voken_jax.sharding import batch_sharding, check_batch, make_mesh
from voken_jax.state import abstract_state, build_players
from voken_jax.tokenizer_step import Perceptual, TokenizerStep

NOMINAL_STEPS = 1000
"""Schedules need a length; it changes no shape, so any will do here."""


def dry_run(config: Config) -> dict[str, float]:
    """Compile one training step for the devices at hand and print parameters, memory per device and FLOPs.

    Memory is XLA's analysis of the compiled program for this kind of device: arguments (state, batch, frozen weights)
    and temporaries. FLOPs are XLA's count over loop bodies counted once, per device.
    """
    mesh = make_mesh(config.mesh)
    check_batch(config, mesh)
    players = build_players(config)
    schedule = build_schedule(config, NOMINAL_STEPS, config.training.steps or NOMINAL_STEPS)
    optimizer = build_optimizer(config.optimizer, schedule)
    state = abstract_state(config, players, optimizer, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = TokenizerStep(config, players, optimizer, mesh, shardings, _abstract_lpips(config))
    side = config.data.image_size
    shape = (config.training.batch_size, side, side, config.model.image_channels)
    images = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=batch_sharding(mesh))
    compiled = step.lower(state, images).compile()
    memory: Any = compiled.memory_analysis()
    cost = compiled.cost_analysis() or {}
    codebook = state.generator.get("quantize.embedding.embedding")
    report = {
        "generator_parameters": _size(state.generator),
        "discriminator_parameters": _size(state.discriminator),
        "devices": mesh.size,
        "state_bytes_per_device": _bytes_per_device(state),
        "argument_bytes_per_device": memory.argument_size_in_bytes,
        "temporary_bytes_per_device": memory.temp_size_in_bytes,
        "flops_per_device": float(cost.get("flops", float("nan"))),
    }
    if codebook is not None:
        report["codebook_rows_per_device"] = codebook.sharding.shard_shape(codebook.shape)[0]
    _print(config, mesh, report)
    return report


def _abstract_lpips(config: Config) -> Perceptual | None:
    if config.perceptual.weights == "none":
        return None
    network = build_lpips(config)
    return Perceptual(network, network.parameters | network.buffers)


def _size(weights: dict[str, Any]) -> int:
    return sum(int(np.prod(w.shape)) for w in weights.values())


def _bytes_per_device(state: Any) -> int:
    leaves = jax.tree.leaves(state)
    return sum(int(np.prod(s.sharding.shard_shape(s.shape))) * s.dtype.itemsize for s in leaves)


def _print(config: Config, mesh: Any, report: dict[str, Any]) -> None:
    print(f"{config.name}: dry run on a mesh of {dict(mesh.shape)} ({jax.devices()[0].device_kind})")
    print(f"  global batch {config.training.batch_size}, images {config.data.image_size} x {config.data.image_size}")
    for name, value in report.items():
        if "bytes" in name:
            print(f"  {name.replace('_bytes', ''):34s} {value / 2**30:10.3f} GiB")
        elif name == "flops_per_device":
            print(f"  {name:34s} {value / 1e12:10.3f} TFLOP per step (loop bodies counted once)")
        else:
            print(f"  {name:34s} {value:14,}")
