"""YAML from files of others: bounded in bytes, depth, aliases and the length of numbers."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

LARGEST = 128 << 10
"""Bytes of a document, which the reader takes a few seconds for. Configurations have a few kilobytes."""
DEEPEST = 32
"""Lists and mappings within each other."""
MOST_VALUES = 20_000
"""Values of a document, those behind an alias each time that it is used."""
LONGEST_NUMBER = 100
"""Characters; longer text without quotes is text."""


class BoundedLoader(yaml.SafeLoader):
    """Refuses what would exhaust memory, time or the stack; knows plain values only, as its base.

    Keys that come twice, or that are no plain values, are errors.
    """

    def __init__(self, stream: Any):
        super().__init__(stream)
        self._values = self._depth = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        """A node and what is below it; an alias counts as all that it stands for."""
        if self.check_event(yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if id(node) not in self._sizes:
                self._stop("an alias stands for what it is in", node)
            self._count(self._sizes[id(node)], node)
            return node
        before = self._values
        self._count(1, None)
        self._depth += 1
        if self._depth > DEEPEST:
            self._stop(f"lists or mappings are nested more than {DEEPEST} deep", None)
        node = super().compose_node(parent, index)
        self._depth -= 1
        self._sizes[id(node)] = self._values - before
        return node

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        """The type of a value; long text is no number, and the patterns of numbers are not tried on it."""
        if kind is yaml.ScalarNode and implicit[0] and len(value) > LONGEST_NUMBER:
            return self.DEFAULT_SCALAR_TAG
        return super().resolve(kind, value, implicit)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping whose keys are plain values, each once."""
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key is a list or a mapping; expected text", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key!r}", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def _count(self, values: int, node: Any) -> None:
        self._values += values
        if self._values > MOST_VALUES:
            self._stop(f"it has more than {MOST_VALUES} values, those behind aliases counted each time", node)

    def _stop(self, problem: str, node: Any) -> None:
        raise yaml.composer.ComposerError(
            None, None, problem, node.start_mark if node else self.peek_event().start_mark
        )


def load(text: str, loader: type[BoundedLoader] = BoundedLoader) -> Any:
    """Read one YAML document.

    Args:
        text: of the file.
        loader: with the types that are known.

    Raises:
        yaml.YAMLError: it is not such text, or larger or deeper than the limits above; the message says where.
    """
    if len(text) > LARGEST:
        raise yaml.YAMLError(f"{len(text)} characters; expected at most {LARGEST}")
    try:
        return yaml.load(text, Loader=loader)
    # Of numbers and dates that cannot be: PyYAML hands on what Python says.
    except (RecursionError, ValueError, OverflowError, TypeError, AttributeError, KeyError) as error:
        raise yaml.YAMLError(f"it cannot be read ({type(error).__name__}: {error})") from error
