"""`--dry-run`: build and compile a configuration without data or weights, and report what a step will cost."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from voken_common.config.loading import AnyConfig
from voken_common.config.schema.data import VideoFolderConfig
from voken_common.config.schema.generator import GeneratorConfig
from voken_common.config.schema.tokenizer import Config
from voken_common.training.flops import sample_flops
from voken_jax.dry_run.budget import Budget, Machine, communication, lines, matrix_flops
from voken_jax.generator.build import build_run as build_generator
from voken_jax.parallel.sharding import batch_sharding, make_mesh, size_of
from voken_jax.tokenizer.build import build_run as build_tokenizer
from voken_jax.tokenizer.perceptual import build_lpips
from voken_jax.tokenizer.step import Perceptual

NOMINAL_STEPS = 1000
"""Schedules need a length; it changes no shape, so any will do here."""


def dry_run(config: AnyConfig, machine: Machine | None = None) -> dict[str, float]:
    """Compile one training step for the devices at hand and print parameters, memory per device and FLOPs.

    Memory is XLA's analysis of the compiled program for this kind of device: arguments (state, batch, frozen weights)
    and temporaries. FLOPs of a tokenizer are XLA's count over loop bodies counted once, per device; those of a
    generator, whose layers are a loop, are the matrix products of `voken_common.training.flops.sample_flops`.
    `matrix_flops`, communication and, for a machine, expected rates are those of `voken_jax.dry_run.budget`.
    """
    mesh = make_mesh(config.mesh)
    started = time.perf_counter()
    parts = _tokenizer(config, mesh) if isinstance(config, Config) else _generator(config, mesh)
    state, traced, report = parts
    # For simulated devices the machine code is never run, and making it well takes most of the time; what is read off
    # the program is decided before.
    simulated = jax.default_backend() == "cpu"
    compiled = traced.lower().compile({"xla_backend_optimization_level": 0} if simulated else None)
    memory: Any = compiled.memory_analysis()
    report |= {
        "devices": mesh.size,
        "state_bytes_per_device": _bytes_per_device(state),
        "argument_bytes_per_device": memory.argument_size_in_bytes,
        "temporary_bytes_per_device": memory.temp_size_in_bytes,
    }
    if isinstance(config, Config):
        report["flops_per_device"] = float((compiled.cost_analysis() or {}).get("flops", float("nan")))
    else:
        report["flops_per_device"] = sample_flops(config.model) * config.training.batch_size / mesh.size
    report["seconds"] = time.perf_counter() - started
    _print(config, mesh, report)
    flops = matrix_flops(traced.jaxpr.jaxpr) / mesh.size
    budget = Budget(flops, communication(compiled.as_text()), config.training.batch_size)
    print("\n".join(f"  {line}" for line in lines(budget, machine)))
    expected = {} if machine is None else budget.expected(machine)
    return report | {"matrix_flops_per_device": budget.flops, "sent_bytes_per_device": budget.sent} | expected


def _tokenizer(config: Config, mesh: Mesh) -> tuple[Any, Any, dict[str, float]]:
    """State, traced step, and what is reported of a tokenizer alone."""
    run = build_tokenizer(config, NOMINAL_STEPS, _abstract_lpips(config), mesh)
    state, step = run.abstract, run.step
    side = config.data.image_size
    source = config.data.train
    frames = (source.frames,) if isinstance(source, VideoFolderConfig) else ()
    shape = (config.training.batch_size, *frames, side, side, config.model.image_channels)
    images = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=batch_sharding(mesh))
    report: dict[str, float] = {
        "generator_parameters": size_of(state.generator),
        "discriminator_parameters": size_of(state.discriminator),
    }
    codebook: Any = state.generator.get("quantize.embedding.embedding")
    if codebook is not None:
        report["codebook_rows_per_device"] = codebook.sharding.shard_shape(codebook.shape)[0]
    return state, step.trace(state, images), report


def _generator(config: GeneratorConfig, mesh: Mesh) -> tuple[Any, Any, dict[str, float]]:
    """Build and trace a generator's step."""
    run = build_generator(config, NOMINAL_STEPS, mesh)
    state, step = run.abstract, run.step
    size, model = config.training.batch_size, config.model
    shapes = {"tokens": (size, model.tokens, len(model.vocabularies)), "labels": (size,)}
    where = batch_sharding(mesh)
    batch: Any = {name: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=where) for name, shape in shapes.items()}
    return state, step.program.trace(state, batch), {"parameters": size_of(state.generator)}


def _abstract_lpips(config: Config) -> Perceptual | None:
    if config.perceptual.weights == "none":
        return None
    network = build_lpips(config)
    return Perceptual(network, network.parameters | network.buffers)


def _bytes_per_device(state: Any) -> int:
    leaves = jax.tree.leaves(state)
    return sum(int(np.prod(s.sharding.shard_shape(s.shape))) * s.dtype.itemsize for s in leaves)


def _print(config: AnyConfig, mesh: Mesh, report: dict[str, float]) -> None:
    print(f"{config.name}: dry run on a mesh of {dict(mesh.shape)} ({jax.devices()[0].device_kind})")
    tokenizer = isinstance(config, Config)
    what = (
        f"{'clips' if config.data.is_video else 'images'} of {config.data.image_size} x {config.data.image_size}"
        if isinstance(config, Config)
        else (f"{config.model.tokens} tokens a sample")
    )
    counted = "loop bodies counted once" if tokenizer else "matrix products, backward passes included"
    print(f"  global batch {config.training.batch_size}, {what}")
    for name, value in report.items():
        if "bytes" in name:
            print(f"  {name.replace('_bytes', ''):34s} {value / 2**30:10.3f} GiB")
        elif name == "flops_per_device":
            print(f"  {name:34s} {value / 1e12:10.3f} TFLOP per step ({counted})")
        elif name == "seconds":
            print(f"  {'seconds to compile':34s} {value:10.1f}")
        else:
            print(f"  {name:34s} {value:14,}")
