"""Check requests to a generator, once for both frameworks: classes, seeds, and settings of sampling.

Shape legend: B samples, h w tokens along the sides.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int
from numpy.typing import ArrayLike
from pydantic import ValidationError

from voken_common.config.loading import load_any_config
from voken_common.config.schema.generator import GeneratorConfig, SamplingConfig
from voken_common.config.schema.sampling import Sampling
from voken_common.config.schema.tokenizer import Config
from voken_common.errors import CheckpointError
from voken_common.published.models import config_file, find

SEEDS = 2**32
CACHE_DTYPES = ("float32", "bfloat16", "float16", "float64")


class Samples(NamedTuple):
    """Samples of a generator.

    Attributes:
        ids: (B, h, w) tokens, as the tokenizer takes them.
        images: in [-1, 1], (B, H, W, 3) in JAX and (B, 3, H, W) in PyTorch; None where they were not asked for.
    """

    ids: Any
    images: Any


def check_labels(labels: ArrayLike, classes: int, names: Sequence[str] = ()) -> Int[np.ndarray, " B"]:
    """Classes as a vector of numbers.

    Args:
        labels: numbers, or names of classes, or a mixture; one stands alone.
        classes: how many there are.
        names: of the classes by number; empty: they have none.

    Raises:
        ValueError: not a vector of numbers and names, or none of the classes.
    """
    if isinstance(labels, str):
        labels = [labels]
    if isinstance(labels, Sequence) and any(isinstance(label, str) for label in labels):
        labels = [class_number(label, names) if isinstance(label, str) else label for label in labels]
    array = np.atleast_1d(np.asarray(labels))
    if array.ndim != 1 or array.dtype.kind not in "iu" or not array.size:
        raise ValueError(f"labels are {array.dtype} of shape {array.shape}, expected a vector of classes, one a sample")
    if not 0 <= array.min() <= array.max() < classes:
        raise ValueError(
            f"labels run from {array.min()} to {array.max()}, this generator has classes 0 to {classes - 1}"
        )
    return array.astype(np.int32)


def class_number(name: str, names: Sequence[str]) -> int:
    """The number of the class that is called `name`.

    Raises:
        ValueError: no class is called so; the message names the nearest, or says that the generator knows no names.
    """
    if name in names:
        return list(names).index(name)
    if not names:
        raise ValueError(f"class {name!r}: this generator knows its classes by number only; expected numbers")
    near = difflib.get_close_matches(name, names, n=3) or list(names[:3])
    raise ValueError(f"no class is called {name!r}; did you mean {' or '.join(near)}?")


def seed_of(seed: int, *numbers: int) -> int:
    """The seed of one of the samples that are drawn from a common seed."""
    return int(np.random.SeedSequence((seed, *numbers)).generate_state(1)[0])


def check_seeds(seed: int, seeds: Sequence[int] | None, count: int) -> list[int]:
    """A seed per sample: the given ones, or those that follow from the common one.

    Raises:
        ValueError: another number of them, or one that is no 32-bit number.
    """
    given = [seed] if seeds is None else [int(value) for value in seeds]
    if wrong := [value for value in given if not 0 <= value < SEEDS]:
        raise ValueError(f"seed {wrong[0]}: expected 0 to {SEEDS - 1}")
    if seeds is None:
        return [seed_of(seed, number) for number in range(count)]
    if len(given) != count:
        raise ValueError(f"{len(given)} seeds for {count} labels: expected one a sample, or `seed` for all")
    return given


def check_cache_dtype(dtype: Any) -> None:
    """Raise ValueError unless keys and values can be kept in a type, given by any name or object of NumPy's kind."""
    name = str(getattr(dtype, "name", dtype)).removeprefix("torch.")
    if name not in CACHE_DTYPES:
        raise ValueError(f"cache_dtype is {name}: expected {', '.join(CACHE_DTYPES)}; keys and values are no integers")


def check_sampling(sampling: Sampling | SamplingConfig | None, config: GeneratorConfig) -> Sampling:
    """Return the given settings of sampling, or those of the generator's configuration.

    Raises:
        ValueError: values that cannot be, or not one per sub-token.
    """
    if sampling is None:
        return config.sampling.settings()
    if isinstance(sampling, Sampling):
        try:
            sampling = SamplingConfig(**sampling._asdict())
        except ValidationError as error:
            detail = error.errors()[0]
            place = ".".join(map(str, detail["loc"]))
            raise ValueError(f"sampling.{place} is {detail['input']!r}: {detail['msg'].lower()}") from error
    parts = len(config.model.vocabularies)
    for name in ("scale", "temperature", "top_k", "top_p"):
        found = getattr(sampling, name)
        if len(found) != parts:
            raise ValueError(
                f"{name} has {len(found)} value(s) {list(found)}; {config.name} predicts {parts} sub-token(s) per "
                "position and needs one for each"
            )
    return sampling.settings()


def preset(name: str) -> SamplingConfig:
    """The settings that a published generator's figures were computed with.

    Raises:
        ValueError: no such model, or one that generates nothing.
    """
    try:
        model = find(name)
    except KeyError as error:
        raise ValueError(f"--preset: {error.args[0]}") from error
    if model.family != "generator":
        raise ValueError(f"--preset {name}: that is an {model.family}, expected a generator")
    config = load_any_config(config_file(model), ["data.train=none"])
    assert isinstance(config, GeneratorConfig)
    return config.sampling


def require_fitting(config: GeneratorConfig, tokenizer: Config, origin: str) -> None:
    """Raise CheckpointError unless a tokenizer, read from `origin`, has the codes that the generator predicts."""
    codes, vocabularies = tokenizer.quantizer.codebook_size, config.model.vocabularies
    if codes != math.prod(vocabularies):
        raise CheckpointError(
            f"tokenizer {origin} has {codes} codes, generator {config.name} predicts {math.prod(vocabularies)} "
            f"(model.vocabularies {list(vocabularies)}): name the tokenizer that it was trained with"
        )


def require_trained_with(config: GeneratorConfig, fingerprint: Callable[[], str], origin: str) -> None:
    """Raise CheckpointError unless a tokenizer, read from `origin`, is the one that a generator was trained with.

    Generators of earlier versions, and those that were converted from other formats, may not know which that was.
    """
    if config.tokenizer_fingerprint is None:
        return
    if (found := fingerprint()) != config.tokenizer_fingerprint:
        raise CheckpointError(
            f"tokenizer {origin} is {found[:12]}, generator {config.name} was trained with "
            f"{config.tokenizer_fingerprint[:12]}: its codes mean other pictures. It may have been trained on since, "
            "or another set of its weights is meant: name the one that made the generator's tokens, such as one of its "
            "steps (runs/tokenizer/checkpoints/<step>)"
        )


def no_tokenizer(config: GeneratorConfig) -> CheckpointError:
    """The error where images are asked for and nothing says what makes them."""
    return CheckpointError(
        f"generator {config.name} names no tokenizer, so that it makes tokens alone: give one "
        "(`Generator.load(..., tokenizer=CHECKPOINT)`, --tokenizer CHECKPOINT), or ask for tokens (`images=False`)"
    )
