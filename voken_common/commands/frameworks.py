"""JAX or PyTorch: which of them a command runs in, and the module of that framework that does its work.

Nothing here imports a framework to find out; only `module_of` does, once a command has its arguments.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
from types import ModuleType
from typing import Literal, get_args

Framework = Literal["jax", "torch"]
PREFERRED: tuple[Framework, ...] = get_args(Framework)
"""Where both are installed the first one runs: JAX, in which everything is there first."""
TITLES: dict[Framework, str] = {"jax": "JAX", "torch": "PyTorch"}
_NEEDED: dict[Framework, tuple[str, ...]] = {"jax": ("jax", "flax"), "torch": ("torch",)}


def is_installed(framework: Framework) -> bool:
    """Look for a framework without importing it."""
    return all(importlib.util.find_spec(package) is not None for package in _NEEDED[framework])


def choose(wanted: Framework | None, supported: tuple[Framework, ...] = PREFERRED) -> Framework:
    """Choose the framework that a command runs in.

    Args:
        wanted: the value of --framework; None: the first that is installed of those that can.
        supported: the frameworks that have this command.

    Raises:
        ValueError: the framework is not installed, or does not have the command.
    """
    if wanted is not None:
        if wanted not in supported:
            names = " and ".join(TITLES[name] for name in supported)
            raise ValueError(f"--framework {wanted}: this command is there in {names} only")
        if not is_installed(wanted):
            raise ValueError(
                f"--framework {wanted}: {TITLES[wanted]} is not installed here; pip install 'voken[{wanted}]'"
            )
        return wanted
    for framework in PREFERRED:
        if framework in supported and is_installed(framework):
            return framework
    names = " or ".join(f"{TITLES[name]} (pip install 'voken[{name}]')" for name in supported)
    raise ValueError(f"this command needs {names}, which is not installed here")


def module_of(options: argparse.Namespace, name: str) -> ModuleType:
    """Import the part of a command that belongs to the framework of `options`, such as `voken_jax.train`."""
    return importlib.import_module(f"voken_{options.framework}.{name}")
