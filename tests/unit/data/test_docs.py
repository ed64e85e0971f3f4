"""The configurations of docs/data.md are valid, and the page names every kind of source and every file of prepare."""

import re
import typing
from pathlib import Path

import pytest
import yaml

from voken_common.config.schema import data as schema

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "data.md").read_text()
EXAMPLES = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


def frozen(value):
    if isinstance(value, dict):
        return {key: frozen(below) for key, below in value.items()}
    return tuple(map(frozen, value)) if isinstance(value, list) else value


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: text.split("kind: ")[1].split(",")[0].split("\n")[0])
def test_examples_are_valid(example):
    values = frozen(yaml.safe_load(example))
    schema.DataConfig.model_validate({"image_size": 8} | values.get("data", values))


def test_every_kind_is_described():
    union, _ = typing.get_args(schema.SourceConfig)
    kinds = {model.model_fields["kind"].default for model in typing.get_args(union)}
    assert kinds == set(re.findall(r"kind: (\w+)", PAGE))
