"""Find the bytes of each array of an Orbax step in OCDBT, the database format of TensorStore."""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorstore as ts

from voken_common.checkpoints.checksums import Extent

_MANIFEST = "manifest.ocdbt"


def stored_arrays(step_folder: Path) -> dict[str, list[Extent]]:
    """`item/array` -> its stored chunks in order, by what the databases of a step say.

    Raises:
        ValueError: a database is damaged or written in another way.
    """
    arrays: dict[str, list[Extent]] = {}
    for manifest in sorted(step_folder.glob(f"*/{_MANIFEST}")):
        item = manifest.parent
        base = ts.KvStore.open({"driver": "file", "path": f"{item.absolute()}/"}).result()
        root = ts.ocdbt.dump(base).result()["versions"][-1]["root"]
        for key, extent in sorted(_entries(base, root), key=lambda entry: entry[0]):
            name, _, chunk = key.rpartition("/")
            if not chunk.startswith("."):
                placed = extent._replace(file=f"{item.name}/{extent.file}") if extent.file else extent
                arrays.setdefault(f"{item.name}/{name}", []).append(placed)
    return arrays


def _entries(base: Any, node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Extent]]:
    """(key, where its value lies) of everything below a node of the tree."""
    if "location" not in node:
        return
    content = ts.ocdbt.dump(base, node["location"]).result()
    for entry in content["entries"]:
        if "inline_value" in entry:
            yield prefix + _text(entry["key"]), Extent(inline=entry["inline_value"])
        elif "indirect_value" in entry:
            yield prefix + _text(entry["key"]), _extent(entry["indirect_value"])
        else:
            yield from _entries(base, entry, prefix + _text(entry.get("subtree_common_prefix", b"")))


def _extent(location: str) -> Extent:
    """Parse `value:FOLDER:FILE:OFFSET:LENGTH`."""
    parts = location.split(":")
    if len(parts) != 5 or parts[0] != "value":
        raise ValueError(f"unknown location {location!r} in a database of arrays")
    return Extent(urllib.parse.unquote(parts[1] + parts[2]), int(parts[3]), int(parts[4]))


def _text(key: bytes | str) -> str:
    return key.decode() if isinstance(key, bytes) else key
