"""Batches of images on their way to a generator in PyTorch: nothing of a step waits for the device."""

import types

import numpy as np
import pytest
import torch

from voken_common.data.errors import DataError
from voken_common.data.tokens.format import split_ids
from voken_torch.generator.frozen_tokenizer import FrozenTokenizer
from voken_torch.generator.task import GeneratorTask

CLASSES = 5


class Ids:
    """A tokenizer whose ids are known."""

    config = types.SimpleNamespace(quantizer=types.SimpleNamespace(bit_order="lsb_first"))

    def __init__(self, ids):
        self.ids = ids

    def encode(self, images):
        return self.ids.to(images.device)


def frozen(ids, vocabularies):
    tokenizer = FrozenTokenizer.__new__(FrozenTokenizer)
    tokenizer.tokenizer, tokenizer._model = Ids(ids), types.SimpleNamespace(vocabularies=vocabularies)
    return tokenizer


def task(vocabularies=(8, 16)):
    made = GeneratorTask.__new__(GeneratorTask)
    made.config = types.SimpleNamespace(model=types.SimpleNamespace(classes=CLASSES))
    made.tokenizer = frozen(torch.zeros(2, 4, 4, dtype=torch.int32), vocabularies)
    return made


def batch(largest):
    return {
        "image": np.zeros((2, 8, 8, 3), np.float32),
        "label": np.array([0, largest], np.int32),
        "mask": np.ones(2, np.float32),
    }


def on_meta(arrays):
    """On a device of which nothing can be read."""
    return {name: torch.from_numpy(array).to("meta") for name, array in arrays.items()}


@pytest.mark.parametrize(("vocabularies", "sub_tokens"), [((8, 16), 2), ((128,), 1)])
def test_nothing_is_read_from_the_device(vocabularies, sub_tokens):
    arrays = batch(CLASSES - 1)
    tokens = task(vocabularies).tokens(arrays, on_meta(arrays))
    assert {name: tuple(value.shape) for name, value in tokens.items()} == {
        "tokens": (2, 16, sub_tokens),
        "labels": (2,),
        "mask": (2,),
    }


def test_a_label_without_a_class_is_told():
    arrays = batch(CLASSES)
    with pytest.raises(DataError, match=r"data\.images gives class 5, model\.classes 5 expects less"):
        task().tokens(arrays, on_meta(arrays))


@pytest.mark.parametrize("vocabularies", [(8, 16), (128,)])
def test_tokens_are_split_as_those_of_shards(vocabularies):
    ids = torch.arange(128, dtype=torch.int32).reshape(2, 8, 8)
    found = frozen(ids, vocabularies).encode(torch.zeros(2, 16, 16, 3))
    expected = split_ids(ids.flatten(1).numpy(), vocabularies)
    assert found.dtype == torch.int32
    np.testing.assert_array_equal(found.numpy(), expected)
