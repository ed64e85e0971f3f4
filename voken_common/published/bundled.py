"""The models that come along with voken as package data: they load without any network."""

from __future__ import annotations

from pathlib import Path

BUNDLED = ("tiny",)
"""Their names; each has a folder here with `model.safetensors` and a model card."""


def bundled(name: str) -> Path | None:
    """The file of a model that comes along, or None for any other name."""
    return Path(__file__).parent / name / "model.safetensors" if name in BUNDLED else None
