"""One conversion from end to end: read, find the configuration, check, write, compare."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from voken_common.atomic_write import replacing
from voken_common.checkpoints.conversion import lightning, torch_file
from voken_common.checkpoints.conversion.contents import (
    FORMATS,
    Contents,
    Format,
    Manifest,
    check_finite,
    check_networks,
    narrow,
)
from voken_common.checkpoints.conversion.formats import read_file
from voken_common.checkpoints.conversion.matching import find_config, named_config
from voken_common.checkpoints.conversion.safetensors_file import write_safetensors
from voken_common.checkpoints.steps import FOLDER, ITEMS, Step, Weights
from voken_common.config.loading import AnyConfig, to_yaml
from voken_common.config.schema.generator import GeneratorConfig
from voken_common.config.schema.tokenizer import Config
from voken_jax.conversion import frozen_tokenizer as first_stage
from voken_jax.conversion import places, torch_bridge
from voken_jax.conversion.frozen_tokenizer import FirstStage
from voken_jax.conversion.networks import manifest_of
from voken_jax.conversion.orbax_step import read_step, write_step
from voken_jax.conversion.verify import compare
from voken_jax.conversion.verify_generator import compare_generators

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
    source = places.find_source(options.src, step, verify=options.checksums)
    places.check_target(options.dst, options.src, target, options.overwrite)
    if target in ("torch", "lightning"):
        torch_bridge.require_torch(f"--to {target}")
    contents = read(source, options, target)
    manifest = prepare(contents, target, options)
    tokenizer = prepare_first_stage(contents, source, options, target)
    tell(contents, source)
    compared: Weights = "ema" if "ema" in contents.weights else "raw"
    if tokenizer is not None:
        tell(tokenizer.contents, Path(tokenizer.contents.origin))
        if tokenizer.target is not None:
            print(f"wrote {write(tokenizer.contents, tokenizer.manifest, tokenizer.target, target)} (the tokenizer)")
    written = write(contents, manifest, options.dst, target)
    print(f"wrote {written} ({FORMATS[target]})")
    if not options.verify:
        return True
    before, after = read(source, options), read(written, options)
    agree = verify(before, after, compared, manifest, options.config is not None)
    if tokenizer is not None:
        own = argparse.Namespace(**{**vars(options), "weights": None})
        earlier = before.first_stage if tokenizer.source is None else read(tokenizer.source, own)
        later = after.first_stage if tokenizer.target is None else read(places.find_source(tokenizer.target), own)
        assert earlier is not None
        assert later is not None
        agree &= verify(earlier, later, tokenizer.weights, tokenizer.manifest, True)
    return agree


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
    return read_file(source, "skip" if options.skip_objects else "refuse", trusted, verify=options.checksums)


def prepare(contents: Contents, target: Format, options: argparse.Namespace, who: str | None = None) -> Manifest:
    """Find the configuration, name the averages, leave behind what is not wanted, and check all that is left.

    Raises:
        ValueError: no configuration, or contents that are not what it says.
    """
    contents.config = _config(contents, options.config)
    manifest = manifest_of(contents.config)
    # Also what the target cannot hold: a file that is wrong there was not read right.
    check_networks(contents, manifest, generator_only=options.weights is not None)
    lightning.resolve_averages(contents, manifest)
    narrow(contents, target, options.weights, who)
    check_networks(contents, manifest)
    check_finite(contents, options.allow_nonfinite)
    return manifest


def prepare_first_stage(
    contents: Contents, source: Path, options: argparse.Namespace, target: Format
) -> FirstStage | None:
    """The tokenizer of a generator, checked like the generator, which then names or holds it.

    Raises:
        ValueError, OSError: it cannot be used, or may not be written.
    """
    config = contents.config
    if not isinstance(config, GeneratorConfig):
        if options.tokenizer is not None or options.tokenizer_config is not None:
            raise ValueError(f"--tokenizer and --tokenizer-config are for generators; {contents.origin} is a tokenizer")
        return None
    place = first_stage.locate(contents, source, options, target)
    own = argparse.Namespace(**{**vars(options), "weights": None, "config": None})
    found = contents.first_stage if place is None else read(place, own)
    if found is None:
        return None
    if found.config is None and options.tokenizer_config is None:
        found.config, _ = find_config(found, manifest_of, first_stage.preferred(config) or "", "--tokenizer-config")
    # One set, and no training: the one that a generator's tokenizer is loaded with.
    own.weights = "ema" if "ema" in found.weights or found.unnamed_averages else "raw"
    found.config = _config(found, options.tokenizer_config, "--tokenizer-config")
    lightning.resolve_averages(found, manifest_of(found.config))
    manifest = prepare(found, target, own, "the generator")
    first_stage.require_fits(found, config)
    if target == "lightning":
        contents.first_stage = found
        return FirstStage(found, manifest, own.weights, place, None)
    beside = first_stage.target_of(options.dst)
    places.check_target(beside, place or source, target, options.overwrite)
    contents.config, contents.first_stage = config.model_copy(update={"tokenizer": str(beside)}), None
    return FirstStage(found, manifest, own.weights, place, beside)


def tell(contents: Contents, source: Path) -> None:
    """Print what is converted, and what is not."""
    print(f"{source}: {FORMATS[contents.format]} of {contents.meta.config.name}, step {contents.step}")
    for line in contents.kept():
        print(f"  keeps {line}")
    for line in contents.dropped:
        print(f"  drops {line}")


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


def verify(before: Contents, after: Contents, weights: Weights, manifest: Manifest, given: bool) -> bool:
    """Compare what both compute; prints the findings.

    Args:
        before, after: source and target, read again.
        weights: the set to compare.
        manifest: of the target's configuration.
        given: the source's own configuration was not used.
    """
    if before.config is None or given:
        before.config = after.config
    lightning.resolve_averages(before, manifest)
    lightning.resolve_averages(after, manifest)
    # A file that holds one set under plain names does not say which it was.
    kept = weights if weights in after.weights else "raw"
    config = after.meta.config
    if isinstance(config, Config):
        findings = compare(config, before.weights[weights], after.weights[kept])
    else:
        findings = compare_generators(config, before.weights[weights], after.weights[kept])
    print(f"verified {config.name} with the {weights} weights, against the source in JAX:")
    for finding in findings:
        print(f"  {finding}")
    if not torch_bridge.is_installed():
        print("  PyTorch is not installed, so it was not compared")
    return all(finding.good for finding in findings)


def _config(contents: Contents, given: str | None, option: str = "--config") -> AnyConfig:
    if given is None:
        return contents.config or find_config(contents, manifest_of, prefer=Path(contents.origin).name)[0]
    if contents.config is not None:
        logger.info("%s carries a configuration of its own; %s takes its place", contents.origin, given)
    config = named_config(given, option)
    if config.kind != contents.kind:
        raise ValueError(f"{given} is the configuration of a {config.kind}, {contents.origin} is a {contents.kind}")
    return config


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
