"""Visual tokenizers and generators in JAX and Flax.

`Tokenizer` and `Generator` are loaded when they are first asked for, so that importing the package alone takes no time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from voken_jax.generator.api import Generator
    from voken_jax.tokenizer.api import Tokenizer

__all__ = ["Generator", "Tokenizer"]
_ROOMS = {"Generator": "generator", "Tokenizer": "tokenizer"}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_ROOMS[name]}.api"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
