"""The layout of the published checkpoints: a PyTorch Lightning file with every weight of a run in one `state_dict`.

Weights of a tokenizer have their torch names, the discriminator's and LPIPS's with a prefix; averages have the names of
what they average with all dots removed. A generator's weights and those of its tokenizer (the first stage) have a
prefix each, and there are no averages.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np

from voken_common.checkpoints import weight_names as names
from voken_common.checkpoints.conversion.contents import Arrays, Contents, Kind, Manifest
from voken_common.checkpoints.steps import Meta
from voken_common.checkpoints.torch_globals import Inert
from voken_common.errors import CheckpointError

Part = Literal["generator", "discriminator", "perceptual", "averages", "first_stage"]

VERSION = "2.2.0"
"""Of Lightning, whose layout this is."""
OWN_KEY = "voken"
"""Where a file that voken wrote carries its configuration."""
OWN_TOKENIZER_KEY = "voken_tokenizer"
"""Where such a file of a generator carries that of its first stage."""
TRANSFORMER_PREFIX = "transformer."
FIRST_STAGE_PREFIX = "first_stage_model."
_CONTAINERS = ("state_dict", "model_state_dict", "model", "module")
"""Under which a file may hold its state dict; the last two may hold another of these."""
_WRAPPERS = ("module", "_orig_mod")
"""Put in front of names by data parallelism and by torch.compile."""
_BOOKKEEPING = (names.EMA_PREFIX + "decay", names.EMA_PREFIX + "num_updates")
_CONVERTED = ("state_dict", "global_step", "epoch", "pytorch-lightning_version", OWN_KEY, OWN_TOKENIZER_KEY)


@dataclasses.dataclass(frozen=True)
class Family:
    """A kind of model: which part of a run the weights under each prefix are, and which prefixes only say that."""

    name: str
    kind: Kind
    parts: Mapping[str, Part]
    labels: tuple[str, ...]

    @property
    def article(self) -> str:
        """For messages."""
        return "an" if self.name[0] in "aeiou" else "a"


IMAGE_TOKENIZER = Family(
    "image tokenizer",
    "tokenizer",
    MappingProxyType(
        {
            "encoder.": "generator",
            "decoder.": "generator",
            "quantize.": "generator",
            "quant_conv.": "generator",
            "post_quant_conv.": "generator",
            names.DISCRIMINATOR_PREFIX: "discriminator",
            names.PERCEPTUAL_PREFIX: "perceptual",
            names.EMA_PREFIX: "averages",
        }
    ),
    labels=(names.DISCRIMINATOR_PREFIX, names.PERCEPTUAL_PREFIX),
)
GENERATOR = Family(
    "generator",
    "generator",
    MappingProxyType({TRANSFORMER_PREFIX: "generator", FIRST_STAGE_PREFIX: "first_stage"}),
    labels=(TRANSFORMER_PREFIX, FIRST_STAGE_PREFIX),
)
FAMILIES = (IMAGE_TOKENIZER, GENERATOR)


@dataclasses.dataclass
class Sorted:
    """A state dict sorted by part; averages keep the names they have in the file."""

    kind: Kind
    generator: Arrays
    discriminator: Arrays
    perceptual: Arrays
    averages: Arrays
    first_stage: Arrays


def sort_state_dict(state_dict: Arrays, origin: str) -> Sorted:
    """Sort weights by their prefixes.

    Raises:
        NameMismatch: weights under prefixes that no family has.
    """
    family = max(FAMILIES, key=lambda candidate: sum(_prefix(key, candidate) is not None for key in state_dict))
    found: dict[Part, Arrays] = {part: {} for part in get_args(Part)}
    foreign = []
    for key, array in state_dict.items():
        prefix = _prefix(key, family)
        if prefix is None:
            foreign.append(key)
            continue
        found[family.parts[prefix]][key.removeprefix(prefix) if prefix in family.labels else key] = array
    if foreign:
        raise names.NameMismatch(
            f"{origin}: {len(foreign)} unexpected weight(s), such as {', '.join(foreign[:4])}; the weights of "
            f"{family.article} {family.name} lie under {', '.join(family.parts)}"
        )
    if not found["generator"]:
        raise names.NameMismatch(
            f"{origin}: no weight of {family.article} {family.name} itself, only such as {next(iter(state_dict), None)}"
        )
    return Sorted(family.kind, **found)


def is_state_dict(root: Any) -> bool:
    """True if a value holds weights by name, some of them of a known family."""
    if not isinstance(root, Mapping) or not all(isinstance(key, str) for key in root):
        return False
    known = [key for key in root if any(_prefix(_unwrapped(key), family) is not None for family in FAMILIES)]
    return any(isinstance(root[key], np.ndarray) for key in known)


def find_state_dict(root: Mapping[Any, Any]) -> Mapping[Any, Any] | None:
    """The weights by name in a file: under one of the usual names, or the file itself; None where there are none."""
    for key in _CONTAINERS:
        if key in root:
            inner = root[key]
            return inner if key == "state_dict" else find_state_dict(inner) if isinstance(inner, Mapping) else None
    return root if is_state_dict(root) else None


def to_contents(root: Mapping[str, Any], origin: str) -> Contents:
    """Read a Lightning checkpoint, or a bare state dict, that was loaded as arrays.

    The averages stay unnamed: what they average is known only with the network, see `resolve_averages`.

    Raises:
        NameMismatch: weights that belong nowhere.
        CheckpointError: values that are no tensors.
    """
    state_dict = find_state_dict(root)
    if not isinstance(state_dict, Mapping):
        raise CheckpointError(f"{origin}: state_dict is {_kind(state_dict)}; expected weights by name")
    wrong = {str(key): _kind(value) for key, value in state_dict.items() if not isinstance(value, np.ndarray)}
    if wrong:
        raise CheckpointError(f"{origin}: the state dict holds {dict(list(wrong.items())[:4])}; expected tensors only")
    found = sort_state_dict(names.map_names(state_dict, _unwrapped), origin)
    contents = Contents(origin, "lightning", weights={"raw": found.generator}, kind=found.kind)
    contents.discriminator = found.discriminator or None
    if found.first_stage:
        contents.first_stage = Contents(f"{origin}, first stage", "lightning", weights={"raw": found.first_stage})
    if found.perceptual:
        contents.dropped.append(f"{len(found.perceptual)} weights of the perceptual loss: every run loads them anew")
    if "state_dict" in root:
        contents.step = _step(root.get("global_step", 0), origin)
        others = sorted(str(key) for key, value in root.items() if key not in _CONVERTED and value)
        if others:
            contents.dropped.append(f"{', '.join(others)}: belongs to the program that wrote the file")
    if OWN_KEY in root:
        meta = Meta.from_dict(root[OWN_KEY], origin)
        contents.config, contents.step, contents.metrics = meta.config, meta.step, meta.metrics
        if contents.first_stage is not None and OWN_TOKENIZER_KEY in root:
            contents.first_stage.config = Meta.from_dict(root[OWN_TOKENIZER_KEY], contents.first_stage.origin).tokenizer
        require_kind(contents)
    averages = root.get("ema")
    if isinstance(averages, Mapping) and not found.averages and is_state_dict(averages):
        # The trainers of other projects keep them apart, under their plain names.
        contents.weights["ema"] = sort_state_dict(names.map_names(averages, _unwrapped), f"{origin}, ema").generator
    contents.unnamed_averages = {key: array for key, array in found.averages.items() if key not in _BOOKKEEPING}
    return contents


def resolve_averages(contents: Contents, manifest: Manifest) -> None:
    """Name the unnamed averages of `contents` after the weights that they average, in place.

    Raises:
        NameMismatch: some are missing or belong to nothing.
    """
    averages = contents.unnamed_averages
    if not averages:
        return
    generator = {names.ema_name(name): name for name in manifest.generator}
    prefixed = {names.ema_name(names.DISCRIMINATOR_PREFIX + name): name for name in manifest.discriminator}
    if len(generator) < len(manifest.generator) or len(prefixed) < len(manifest.discriminator):
        raise names.NameMismatch("two weights of this network have one name without dots: their averages are lost")
    has_discriminator = any(key in prefixed for key in averages)
    expected = [*generator, *(prefixed if has_discriminator else ())]
    names.require_same_names(averages, expected, f"{contents.origin}, averages")
    contents.weights["ema"] = {name: averages[key] for key, name in generator.items()}
    if has_discriminator and contents.discriminator is not None:
        contents.discriminator_ema = {name: averages[key] for key, name in prefixed.items()}
    contents.unnamed_averages = {}


def from_contents(contents: Contents) -> dict[str, Any]:
    """The Lightning checkpoint with these contents.

    Plain names have the raw weights. Where there are only averages these have both names, since every reader of the
    layout wants the plain ones.
    """
    if contents.kind == "generator":
        return _generator_root(contents)
    state_dict: Arrays = dict(contents.weights.get("raw") or contents.weights["ema"])
    discriminator = contents.discriminator or {}
    state_dict |= {names.DISCRIMINATOR_PREFIX + name: array for name, array in discriminator.items()}
    if "ema" in contents.weights:
        config = contents.meta.tokenizer
        state_dict[_BOOKKEEPING[0]] = np.array(config.optimizer.ema_decay, np.float32)
        # In the reference this says that the decay is constant; a count would make it warm up.
        state_dict[_BOOKKEEPING[1]] = np.array(-1, np.int32)
        state_dict |= {names.ema_name(name): array for name, array in contents.weights["ema"].items()}
        averages = contents.discriminator_ema or {}
        state_dict |= {names.ema_name(names.DISCRIMINATOR_PREFIX + n): array for n, array in averages.items()}
    return _root(contents, state_dict)


def require_kind(contents: Contents) -> None:
    """Raise NameMismatch if the weights of a file are not those of the kind of model that its configuration is for."""
    if contents.config is not None and contents.config.kind != contents.kind:
        raise names.NameMismatch(
            f"{contents.origin} holds the weights of a {contents.kind} and the configuration of a "
            f"{contents.config.kind}, {contents.config.name}"
        )


def _generator_root(contents: Contents) -> dict[str, Any]:
    ((_, weights),) = contents.weights.items()
    state_dict = {TRANSFORMER_PREFIX + name: array for name, array in weights.items()}
    first_stage = contents.first_stage
    if first_stage is None:
        return _root(contents, state_dict)
    ((_, weights),) = first_stage.weights.items()
    state_dict |= {FIRST_STAGE_PREFIX + name: array for name, array in weights.items()}
    return _root(contents, state_dict) | {OWN_TOKENIZER_KEY: first_stage.meta.to_dict()}


def _root(contents: Contents, state_dict: Arrays) -> dict[str, Any]:
    return {
        "epoch": 0,
        "global_step": contents.step,
        "pytorch-lightning_version": VERSION,
        "state_dict": state_dict,
        "loops": {},
        "callbacks": {},
        "optimizer_states": [],
        "lr_schedulers": [],
        OWN_KEY: contents.meta.to_dict(),
    }


def _step(value: Any, origin: str) -> int:
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{origin}: global_step is {_kind(value)}; expected a number") from error


def _kind(value: Any) -> str:
    """Describe a value for messages: the name of a skipped object, else its type."""
    return f"a skipped object, {value.name}" if isinstance(value, Inert) else type(value).__name__


def _unwrapped(key: str) -> str:
    """A name without what wrappers of a network put into it, also that of an average, whose dots are gone."""
    if not any(wrapper in key for wrapper in _WRAPPERS):
        return key
    kept = ".".join(part for part in key.split(".") if part not in _WRAPPERS)
    if not kept.startswith(names.EMA_PREFIX):
        return kept
    average = kept.removeprefix(names.EMA_PREFIX).replace(_WRAPPERS[1], "")
    while average.startswith(_WRAPPERS[0]):
        average = average.removeprefix(_WRAPPERS[0])
    return names.EMA_PREFIX + average


def _prefix(key: str, family: Family) -> str | None:
    return next((prefix for prefix in family.parts if key.startswith(prefix)), None)
