"""The one tiny run of the end-to-end tests: every test trains this program, so that it is compiled once."""

from pathlib import Path

import yaml

from voken_common.config.loading import load_config

STEPS = 6
TINY = {
    "name": "tiny",
    "model": {
        "network": "magvit2",
        "resolution": 16,
        "channels": 32,
        "channel_multipliers": [1, 1],
        "residual_blocks": 1,
        "z_channels": 8,
    },
    "quantizer": {"kind": "lfq", "codebook_size": 256, "code_dim": 8},
    "discriminator": {"kind": "patchgan", "channels": 4, "layers": 2},
    "perceptual": {"weights": "none"},
    "optimizer": {"learning_rate": 1e-3, "ema_decay": 0.9},
    "data": {
        "train": {"kind": "skimage", "region": "train", "crops": 40},
        "validation": {"kind": "skimage", "region": "held_out", "crops": 8},
        "image_size": 16,
        "resize": "none",
        "workers": 0,
        "cache": True,
    },
    "training": {"batch_size": 8, "steps": STEPS, "log_every": 3},
    "validation": {"every": 3, "batch_size": 8, "pictures": 4},
    "checkpoint": {"every": 2, "keep_last": 2, "keep_best": 1},
}
SHALLOW = {"discriminator": {"kind": "patchgan", "channels": 4, "layers": 1}}
VQGAN = {
    "model": TINY["model"] | {"network": "vqgan", "resolution": 8, "channel_multipliers": [1]},
    "discriminator": {"kind": "patchgan", "channels": 4, "layers": 1},
    "data": TINY["data"] | {"image_size": 8},
}


def quantized_by(kind, codes=24, **settings):
    """A run with a learned codebook, smaller still."""
    quantizer = {"kind": kind, "codebook_size": codes, "code_dim": 8} | settings
    return TINY | VQGAN | {"quantizer": quantizer}


def write(folder: Path, mapping=None) -> Path:
    """A configuration file, as a user has it."""
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(TINY if mapping is None else mapping))
    return file


def tiny_config(folder: Path, *overrides: str):
    """The tiny run, read from a file."""
    return load_config(write(folder), overrides)
