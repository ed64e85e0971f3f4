"""The tiny generators of the end-to-end tests, and shards of made-up tokens for them."""

import numpy as np
import yaml

from tests.support.tiny import tiny_config
from voken_common.config.loading import validate_any
from voken_common.data.tokens.format import Record, TokenInfo, TokenizerInfo
from voken_common.data.tokens.shards import write_token_shards

STEPS = 6
GRID = 8
CLASSES = 3
ADAPTIVE = {"network": "adaptive", "vocabularies": [256]}
FACTORIZED = {"network": "factorized", "vocabularies": [16, 16], "factorized_layers": 1}


def generator_mapping(shards, kind=ADAPTIVE, **sections):
    """A run's configuration as plain data; sections are laid over it key by key."""
    ones = [1.0] * len(kind["vocabularies"])
    mapping = {
        "kind": "generator",
        "name": "tiny_generator",
        "model": {"grid": GRID, "classes": CLASSES, "layers": 2, "heads": 2, "width": 16, "multiple_of": 16, **kind},
        "optimizer": {
            "learning_rate": 1e-2,
            "weight_decay_end": 0.1,
            "schedule": {"kind": "linear", "warmup_steps": 2},
        },
        "data": {"train": str(shards / "train"), "validation": str(shards / "held_out")},
        "training": {"batch_size": 8, "steps": STEPS, "log_every": 3},
        "validation": {"every": 3, "batch_size": 8, "pictures": 3},
        "checkpoint": {"every": 2, "keep_last": 2, "keep_best": 1},
        "sampling": {"scale": [2.0] * len(ones), "temperature": ones, "top_k": [0] * len(ones), "top_p": ones},
    }
    for name, section in sections.items():
        below = mapping.get(name)
        mapping[name] = {**below, **section} if isinstance(below, dict) else section
    return mapping


def generator_config(shards, kind=ADAPTIVE, **sections):
    """The same, validated."""
    return validate_any(generator_mapping(shards, kind, **sections), "tiny_generator")


def write_generator(folder, mapping):
    """A configuration file, as a user has it."""
    file = folder / "tiny_generator.yaml"
    file.write_text(yaml.safe_dump(mapping))
    return file


def write_shards(folder, vocabularies, fingerprint="0" * 64, counts=(("train", 40), ("held_out", 11))):
    """Folders `train` and `held_out` of tokens that depend on the class: each has a few codes of its own."""
    random = np.random.default_rng(0)
    config = tiny_config(folder)
    for name, samples in counts:
        info = TokenInfo(
            grid=(GRID, GRID),
            vocabularies=tuple(vocabularies),
            tokenizer=TokenizerInfo(
                name="tiny", reference="made up", fingerprint=fingerprint, config=config.model_dump(mode="json")
            ),
            source={"made": "up"},
            samples=samples,
            samples_per_shard=16,
        )
        labels = [index % CLASSES for index in range(samples)]
        tokens = [
            np.stack([(7 * label + random.integers(0, 4, GRID**2)) % v for v in vocabularies], 1) for label in labels
        ]
        records = [Record(t, label, f"{name}/{i}") for i, (t, label) in enumerate(zip(tokens, labels, strict=True))]
        write_token_shards(folder / name, info, records)
    return folder
