"""Set up JAX before it touches a device: the platform, and the cache of compiled programs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax

from voken_common.errors import UnavailableError


def prepare(device: str = "auto") -> None:
    """Choose the platform, and keep compiled programs in the user's cache folder for the next command.

    Args:
        device: of `--device`; auto: the first platform of JAX.

    Raises:
        UnavailableError: JAX has no such platform.
    """
    keep_programs()
    if device == "auto":
        return
    if device == "npu":
        raise UnavailableError("--device npu: JAX has no NPU; PyTorch computes on it: --framework torch")
    jax.config.update("jax_platforms", device)
    try:
        jax.devices()
    except RuntimeError as error:
        raise UnavailableError(
            f"--device {device}: {str(error).splitlines()[0]}; install JAX for it (pip install 'voken[{device}]'), or "
            "use --device cpu"
        ) from error


def keep_programs() -> None:
    """Keep compiled programs in the user's cache folder, unless JAX was configured to keep them elsewhere.

    JAX_COMPILATION_CACHE_DIR names another folder, and JAX_ENABLE_COMPILATION_CACHE=0 keeps none.
    """
    config: Any = jax.config  # its flags are not in its type
    if config.jax_compilation_cache_dir is None:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(root / "voken" / "jax"))
