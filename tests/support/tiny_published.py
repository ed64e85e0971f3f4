"""Every published model in small: the same layouts, files and codes, narrow networks, seeded weights.

`install` has voken take the small configurations for the published ones, also in a process of its own; all that finds,
compares and converts works on them as on the real ones, and strictly.
"""

import io
from pathlib import Path

import numpy as np
import torch
import yaml

from voken_common.checkpoints import weight_names as names
from voken_common.config.loading import load_any_config, merge, read_mapping
from voken_common.published import models
from voken_torch.checkpoints.load import inference_manifest

CHANNELS, GROUPS, GRID = 8, 4, 2
WIDTHS = {"B": 16, "L": 24, "XL": 32, "XXL": 40}
MODELS = tuple(model for model in models.MODELS if models.has_config(model))
SIDE = 32


def small(model):
    """The small configuration of a published model, as YAML has it."""
    mapping = read_mapping(models.config_file(model))
    if model.family == "generator":
        size = {"width": WIDTHS[model.name.rsplit("_", 1)[1]], "heads": 2, "layers": 1, "grid": GRID}
        if "factorized" in mapping["model"]["network"]:
            size["factorized_layers"] = 1
        return merge(mapping, {"model": size})
    wide = 2 if model.project == "Emu3.5" else 1
    blocks = min(mapping["model"]["residual_blocks"], 1)
    size = {"channels": CHANNELS * wide, "norm_groups": GROUPS, "residual_blocks": blocks}
    if mapping["quantizer"]["kind"] != "lfq":
        return merge(mapping, {"model": size | {"z_channels": 4}, "quantizer": {"code_dim": 4}})
    return merge(mapping, {"model": size})


def write_configs(folder: Path):
    """The small configurations, a file each."""
    for model in MODELS:
        (folder / f"{model.name}.yaml").write_text(yaml.safe_dump(small(model)))


def install(folder: Path, set_attribute=setattr):
    """Have voken take the configurations of `write_configs` for the published ones."""
    from voken_common.checkpoints.conversion import inference, inferred, matching

    def config_file(model):
        file = Path(folder) / f"{model.name}.yaml"
        if not file.is_file():
            raise FileNotFoundError(file)
        return file

    for module in (models, matching, inference, inferred):
        set_attribute(module, "config_file", config_file)


def weights_of(config, seed):
    """Seeded weights under torch names."""
    rng = np.random.default_rng(seed)
    manifest = inference_manifest(config).generator
    return {
        name: torch.from_numpy(rng.normal(0, 1 / max(np.prod(leaf.shape[1:]), 1) ** 0.5, leaf.shape).astype(np.float32))
        for name, leaf in manifest.items()
    }


def published_file(model, folder: Path):
    """(content of the file as it is published, {set: weights}, weights of a generator's tokenizer)."""
    config, seed = load_any_config(folder / f"{model.name}.yaml"), models.MODELS.index(model)
    weights = weights_of(config, seed)
    if model.family == "generator":
        tokenizer = models.find(model.tokenizer)
        stage = weights_of(load_any_config(folder / f"{tokenizer.name}.yaml"), 100)
        state = {f"transformer.{k}": v for k, v in weights.items()}
        state |= {f"first_stage_model.{k}": v for k, v in stage.items()}
        return _saved({"state_dict": state, "global_step": 5, "epoch": 1}), {"raw": weights}, stage
    if not model.averages:
        return _saved(weights), {"raw": weights}, None
    averages = weights_of(config, seed + 50)
    state = dict(weights) | {names.ema_name(name): value for name, value in averages.items()}
    state |= {"model_ema.decay": torch.tensor(0.999), "model_ema.num_updates": torch.tensor(7, dtype=torch.int32)}
    state |= {
        "loss.discriminator.main.0.weight": torch.ones(2),
        "model_ema.lossdiscriminatormain0weight": torch.ones(2),
    }
    return _saved({"state_dict": state, "global_step": 5, "epoch": 1}), {"raw": weights, "ema": averages}, None


def images(config):
    """A small batch in [-1, 1], channels last."""
    shape = (2, SIDE, SIDE, 3)
    return np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)


def _saved(root):
    buffer = io.BytesIO()
    torch.save(root, buffer)
    return buffer.getvalue()
