"""One conversion from end to end: read, find the configuration, check, write, compare."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from voken_common import published
from voken_common.checkpoints import FOLDER, ITEMS, Step, Weights
from voken_common.config import load_config, to_yaml
from voken_common.conversion import lightning, torch_file
from voken_common.conversion.contents import FORMATS, Contents, Format, Manifest, check_finite, check_networks, narrow
from voken_common.conversion.files import read_file
from voken_common.conversion.matching import find_config
from voken_common.conversion.safetensors_file import write_safetensors
from voken_common.files import replacing
from voken_common.schema import Config
from voken_jax.conversion import places, torch_bridge
from voken_jax.conversion.networks import manifest_of
from voken_jax.conversion.orbax_step import read_step, write_step
from voken_jax.conversion.verify import compare

logger = logging.getLogger("voken")


def convert(options: argparse.Namespace) -> bool:
    """Run the command with the options of `voken_jax.convert`.

    Returns:
        whether the result was found to compute the same; True where that was not asked.

    Raises:
        ValueError, OSError: input that cannot be used; nothing has been written then.
    """
    target = places.target_format(options.dst, options.to)
    step: Step = int(options.step) if options.step.isdecimal() else options.step
    source = places.find_source(options.src, step)
    places.check_target(options.dst, options.src, target, options.overwrite)
    if target in ("torch", "lightning"):
        torch_bridge.require_torch(f"--to {target}")
    contents = read(source, options, target)
    manifest = prepare(contents, target, options)
    print(f"{source}: {FORMATS[contents.format]} of {contents.meta.config.name}, step {contents.step}")
    for line in contents.kept():
        print(f"  keeps {line}")
    for line in contents.dropped:
        print(f"  drops {line}")
    compared: Weights = "ema" if "ema" in contents.weights else "raw"
    written = write(contents, manifest, options.dst, target)
    print(f"wrote {written} ({FORMATS[target]})")
    return verify(source, written, compared, manifest, options) if options.verify else True


def read(source: Path, options: argparse.Namespace, target: Format | None = None) -> Contents:
    """The contents of a file or a step; what no target can hold is not even read.

    Raises:
        ValueError, OSError: it cannot be read.
    """
    if source.is_dir():
        weights: Weights | None = options.weights
        if target == "safetensors" and weights is None:
            weights = "ema" if (source / ITEMS["ema"]).is_dir() else "raw"
        return read_step(source, weights, training=target is not None)
    trusted = torch_bridge.load_trusted if options.allow_pickle else None
    return read_file(source, "skip" if options.skip_objects else "refuse", trusted)


def prepare(contents: Contents, target: Format, options: argparse.Namespace) -> Manifest:
    """Find the configuration, name the averages, leave behind what is not wanted, and check all that is left.

    Raises:
        ValueError: no configuration, or contents that are not what it says.
    """
    contents.config = _config(contents, options.config)
    manifest = manifest_of(contents.config)
    # Also what the target cannot hold: a file that is wrong there was not read right.
    check_networks(contents, manifest, generator_only=options.weights is not None)
    lightning.resolve_averages(contents, manifest)
    narrow(contents, target, options.weights)
    check_networks(contents, manifest)
    check_finite(contents, options.allow_nonfinite)
    return manifest


def write(contents: Contents, manifest: Manifest, target: Path, target_format: Format) -> Path:
    """Write the contents, which are used up; returns the file or step that was written."""
    if not places.is_directory(target, target_format):
        _write_file(contents, manifest, target, target_format)
        return target
    step = str(contents.step) if target_format == "orbax" else f"{contents.step}.pt"
    with places.replacing_directory(target) as folder:
        (folder / places.CONFIG_FILE).write_text(to_yaml(contents.meta.config))
        (folder / FOLDER).mkdir()
        if target_format == "orbax":
            write_step(folder / FOLDER / step, contents, manifest)
        else:
            _write_file(contents, manifest, folder / FOLDER / step, target_format)
    return target / FOLDER / step


def verify(source: Path, written: Path, weights: Weights, manifest: Manifest, options: argparse.Namespace) -> bool:
    """Read both again and compare what they compute; prints the findings."""
    before, after = read(source, options), read(written, options)
    if before.config is None or options.config:
        before.config = after.config
    lightning.resolve_averages(before, manifest)
    lightning.resolve_averages(after, manifest)
    config = after.meta.tokenizer
    findings = compare(config, before.weights[weights], after.weights[weights])
    print(f"verified with the {weights} weights, against the source in JAX:")
    for finding in findings:
        print(f"  {finding}")
    if not torch_bridge.is_installed():
        print("  PyTorch is not installed, so it was not compared")
    return all(finding.good for finding in findings)


def _config(contents: Contents, given: str | None) -> Config:
    if given is None:
        return contents.config or find_config(contents, manifest_of)
    if contents.config is not None:
        logger.info("%s carries a configuration of its own; --config %s takes its place", contents.origin, given)
    if not Path(given).exists() and not given.endswith((".yaml", ".yml")):
        try:
            model = published.find(given)
        except KeyError as error:
            raise ValueError(f"--config {given}: no such file, and {error.args[0]}") from error
        if model.config is None:
            raise ValueError(f"--config {given}: a {model.family}, which has no configuration here yet")
        return load_config(published.config_file(model))
    return load_config(given)


def _write_file(contents: Contents, manifest: Manifest, target: Path, target_format: Format) -> None:
    with replacing(target) as file:
        if target_format == "safetensors":
            ((weights, arrays),) = contents.weights.items()
            write_safetensors(file, arrays, contents.meta, weights)
            return
        if target_format == "torch":
            root = torch_file.from_contents(contents, manifest)
        else:
            root = lightning.from_contents(contents)
        # Arrays now leave `root` as they become tensors; a second reference would keep them in memory.
        contents.release()
        torch_bridge.save(root, file)
