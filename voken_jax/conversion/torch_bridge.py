"""The one module of voken_jax that knows PyTorch, only inside its functions: importing it loads nothing of PyTorch.

It writes torch files, reads those that the user trusts, and runs the PyTorch networks for a comparison.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np

from voken_common.checkpoints.conversion.contents import Arrays
from voken_common.config.schema.generator import GeneratorConfig
from voken_common.config.schema.tokenizer import Config
from voken_common.errors import CheckpointError

logger = logging.getLogger("voken")


def is_installed() -> bool:
    """True if PyTorch is installed."""
    return importlib.util.find_spec("torch") is not None


def require_torch(purpose: str) -> None:
    """Raise CheckpointError where PyTorch is not installed."""
    if not is_installed():
        raise CheckpointError(f"{purpose} needs PyTorch, which is not installed: pip install 'voken[torch]'")


def save(root: dict[str, Any], file: IO[bytes]) -> None:
    """Write nested dictionaries of plain values and arrays as `torch.save` does.

    Arrays become tensors one by one and leave `root`, so that memory holds hardly more than one copy. Those that
    already lie as torch wants them, such as a mapped file's, are not copied at all.
    """
    import torch

    with warnings.catch_warnings():
        # Mapped files are read-only, and so are these tensors: they are written and dropped.
        warnings.filterwarnings("ignore", message=".*not writable.*", category=UserWarning)
        _to_tensors(root)
    torch.save(root, file)


def load_trusted(path: Path) -> Any:
    """Read a torch file with everything in it, code included, after saying so; tensors come back as arrays."""
    require_torch(f"--allow-pickle {path}")
    import torch

    logger.warning("WARNING: --allow-pickle: %s holds more than data, and whatever code it names runs now", path)
    return _to_arrays(torch.load(path, map_location="cpu", weights_only=False))


def encode(config: Config, weights: Arrays, images: np.ndarray) -> np.ndarray:
    """Ids (B, h, w) that the PyTorch network gives images (B, H, W, 3)."""
    import torch

    from voken_torch.quantizers.configured import encode_indices

    with torch.no_grad():
        model = _autoencoder(config, weights)
        latents = model.encode(_images(config, images))
        return encode_indices(config.quantizer, latents, model.codebook).numpy()


def decode(config: Config, weights: Arrays, ids: np.ndarray) -> np.ndarray:
    """Images (B, H, W, 3), clamped, that the PyTorch network gives ids (B, h, w)."""
    import torch

    from voken_torch.quantizers.configured import lookup

    with torch.no_grad():
        model = _autoencoder(config, weights)
        codes = lookup(config.quantizer, torch.from_numpy(ids.astype(np.int64)), model.codebook)
        decoded = model.decode(codes.to(getattr(torch, config.precision.param_dtype))).clamp(-1.0, 1.0)
        return decoded.movedim(1, -1).numpy()


def logits(config: GeneratorConfig, weights: Arrays, tokens: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """Logits (B, T, V) per sub-token that the PyTorch network gives tokens (B, T, S) of classes (B,)."""
    import torch

    from voken_torch.models.generator import build_generator

    with torch.device("meta"):
        model: Any = build_generator(config.model)
    with torch.no_grad():
        model = _loaded(model, config.precision.param_dtype, weights)
        parts = model(torch.from_numpy(tokens.astype(np.int64)), torch.from_numpy(labels.astype(np.int64)))
        return [part.numpy() for part in parts]


def _autoencoder(config: Config, weights: Arrays) -> Any:
    import torch

    from voken_torch.models.autoencoder import Autoencoder

    with torch.device("meta"):
        model = Autoencoder(config.model, config.quantizer)
    return _loaded(model, config.precision.param_dtype, weights)


def _loaded(model: Any, param_dtype: str, weights: Arrays) -> Any:
    """A network that was built without memory, with these weights."""
    import torch

    dtype = getattr(torch, param_dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*", category=UserWarning)
        tensors = {name: _tensor(array).to(dtype) for name, array in weights.items()}
    model.load_state_dict(tensors, strict=True, assign=True)
    return model.eval()


def _images(config: Config, images: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(images).movedim(-1, 1).to(getattr(torch, config.precision.param_dtype))


def _to_tensors(tree: dict[str, Any]) -> None:
    for key, value in tree.items():
        if isinstance(value, dict):
            _to_tensors(value)
        elif isinstance(value, np.ndarray):
            tree[key] = _tensor(value)


def _tensor(array: np.ndarray) -> Any:
    import torch

    array = np.require(array, requirements=["C", "A"])
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _to_arrays(value: Any) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        value = value.detach()
        if value.dtype == torch.bfloat16:
            return value.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return value.numpy()
    if isinstance(value, Mapping):
        return {key: _to_arrays(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_arrays(item) for item in value]
    return value
