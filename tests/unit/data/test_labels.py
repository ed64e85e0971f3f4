"""Classes are known by name wherever two sources or sets of shards meet."""

import logging
import os
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.support.tiny import SHALLOW, TINY
from tests.support.tiny_generator import ADAPTIVE, GRID, generator_config
from voken_common.config.loading import validate
from voken_common.data.errors import DataError
from voken_common.data.generator_data import open_held_out, open_training
from voken_common.data.labels import class_name, class_names, numbers_in
from voken_common.data.pipeline import build_validation_batches
from voken_common.data.sources.build import build_source, classes_of
from voken_common.data.tokens.encode import Encoding, encode_dataset
from voken_common.data.tokens.format import Record, TokenInfo, TokenizerInfo
from voken_common.data.tokens.shards import TokenShardSource, write_token_shards

names = st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=8).map(class_name)


def pictures(root, classes, per_class=2):
    """A folder of class folders; every pixel of an image of the n-th of `abc...` has the value n."""
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            colour = np.full((8, 8, 3), class_value(name), np.uint8)
            Image.fromarray(colour).save(root / name / f"{i}.png")
    return root


def class_value(name):
    return sum(os.fsencode(name)) % 251


def section(train, validation, **changes):
    sources = {
        key: {"kind": "image_folder", "path": str(path)} for key, path in (("train", train), ("validation", validation))
    }
    return validate(TINY | SHALLOW | {"data": sources | {"image_size": 8, "workers": 0} | changes}, "data").data


def labels_by_name(data):
    """Class name -> labels that validation gives its images."""
    train = classes_of(data.train)
    found = {}
    for batch in build_validation_batches(data, batch_size=4):
        for image, label, mask in zip(batch["image"], batch["label"], batch["mask"], strict=True):
            if mask:
                found.setdefault(round((image[0, 0, 0] + 1) * 127.5), set()).add(train[label])
    return found


@pytest.mark.parametrize("missing", [("ant",), ("bee",), ("cat",), ("ant", "bee"), ()])
def test_a_class_that_validation_lacks_moves_no_label(tmp_path, missing):
    classes = ("ant", "bee", "cat")
    train = pictures(tmp_path / "train", classes)
    there = [name for name in classes if name not in missing]
    data = section(train, pictures(tmp_path / "val", there))
    assert labels_by_name(data) == {class_value(name): {name} for name in there}


def test_a_class_that_training_lacks_is_refused_by_name(tmp_path):
    train = pictures(tmp_path / "train", ("ant", "bee"))
    data = section(train, pictures(tmp_path / "val", ("ant", "Bee")))
    expected = r"2 classes; 1 class\(es\) that data.train has not: Bee \(is Bee its class bee.*has 2: ant, bee"
    with pytest.raises(DataError, match=expected):
        build_validation_batches(data, batch_size=2)
    assert len(list(build_validation_batches(data, batch_size=2, labelled=False))) == 2


def test_folders_without_images_do_not_count(tmp_path):
    train, held_out = pictures(tmp_path / "train", ("ant", "bee")), pictures(tmp_path / "val", ("bee",))
    (train / "aaa_empty").mkdir()
    (held_out / "zzz_unknown").mkdir()
    assert labels_by_name(section(train, held_out)) == {class_value("bee"): {"bee"}}


def test_composed_and_decomposed_names_are_one(tmp_path):
    train = pictures(tmp_path / "train", ("cat", "d\u00e9e"))
    held_out = pictures(tmp_path / "val", (unicodedata.normalize("NFD", "d\u00e9e"),))
    assert classes_of(section(train, held_out).train) == ("cat", "d\u00e9e")
    source = build_source(section(train, held_out).validation)
    source.adopt_classes(("cat", "d\u00e9e"), "training")
    assert [source.read(i)[1] for i in range(2)] == [1, 1]


def test_names_of_bytes_that_are_no_text_survive_shards(tmp_path):
    odd = os.fsdecode(b"\xff\xfe")
    train = pictures(tmp_path / "train", ("ant", odd, "z"))
    encoded(train, tmp_path / "tokens")
    assert TokenShardSource(tmp_path / "tokens").info.class_names == class_names(["ant", "z", odd])


def test_only_one_side_named_is_said(tmp_path, caplog):
    train = pictures(tmp_path / "train", ("ant", "bee"))
    (tmp_path / "list.txt").write_text("train/ant/0.png\t1\n")
    data = section(train, train).model_copy(
        update={"validation": section(train, train).train.model_copy(update={"kind": "image_folder"})}
    )
    source = build_source(validate_list(tmp_path / "list.txt"))
    with caplog.at_level(logging.WARNING):
        source.adopt_classes(classes_of(data.train), "data.train")
    assert "only one of them names its classes" in caplog.text
    assert source.read(0)[1] == 1


def validate_list(path):
    sources = {"train": {"kind": "list_file", "path": str(path)}, "image_size": 8}
    return validate(TINY | SHALLOW | {"data": sources}, "data").data.train


class Values:
    """The id of a cell is the red value of its top left pixel."""

    config, downsampling = validate(TINY, "tiny"), 1

    def encode(self, images):
        return np.rint((images[..., 0] + 1) * 127.5).astype(np.int32)

    def fingerprint(self):
        return "0" * 64


def encoded(images, output):
    data = section(images, images)
    encode_dataset(Values(), data, output, Encoding(show=False, samples_per_shard=3))
    return output


@pytest.mark.parametrize("kept", [("bee", "cat"), ("cat",), ("ant", "cat")])
def test_shards_carry_names_into_generators(tmp_path, kept):
    encoded(pictures(tmp_path / "images", ("ant", "bee", "cat")), tmp_path / "train")
    encoded(pictures(tmp_path / "fewer", kept), tmp_path / "held_out")
    config = generator_config(tmp_path)
    training = open_training(config, 0, 1).source
    assert training.info.class_names == ("ant", "bee", "cat")
    batch = next(iter(open_held_out(config, 0, 1).batches))
    for tokens, label, mask in zip(batch["tokens"], batch["labels"], batch["mask"], strict=True):
        if mask:
            assert class_value(training.info.class_names[label]) == tokens[0, 0]


def test_shards_of_other_classes_are_refused_by_name(tmp_path):
    encoded(pictures(tmp_path / "images", ("ant", "bee", "cat")), tmp_path / "train")
    encoded(pictures(tmp_path / "other", ("bee", "dog")), tmp_path / "held_out")
    with pytest.raises(DataError, match=r"held_out; 1 class\(es\) that .*train has not: dog"):
        open_held_out(generator_config(tmp_path), 0, 1)


def test_held_out_shards_of_another_tokenizer_are_refused(tmp_path):
    for name, mark in (("train", "a"), ("held_out", "b")):
        made = TokenizerInfo(name=mark, reference="", fingerprint=mark * 64, config={})
        info = TokenInfo(
            grid=(GRID, GRID),
            vocabularies=tuple(ADAPTIVE["vocabularies"]),
            tokenizer=made,
            source={},
            samples=8,
            samples_per_shard=8,
        )
        write_token_shards(tmp_path / name, info, [Record(np.zeros((GRID**2, 1), int), 0, str(i)) for i in range(8)])
    with pytest.raises(DataError, match=r"tokens of tokenizer bbbbbbbbbbbb.*those of aaaaaaaaaaaa"):
        open_held_out(generator_config(tmp_path), 0, 1)


@given(st.lists(names, unique=True, min_size=1, max_size=12), st.data())
def test_any_part_of_the_classes_keeps_its_numbers(reference, data):
    own = data.draw(st.permutations(reference))[: data.draw(st.integers(1, len(reference)))]
    numbers = numbers_in(reference, own, range(len(own)), where="one", reference_where="other")
    assert [reference[number] for number in numbers] == list(own)


@given(st.lists(names, unique=True, min_size=1, max_size=8), st.lists(names, unique=True, min_size=1, max_size=8))
def test_what_is_not_known_is_refused_if_it_is_used(reference, own):
    used = [i for i, name in enumerate(own) if name in reference]
    numbers = numbers_in(reference, own, used, where="one", reference_where="other")
    assert [number >= 0 for number in numbers] == [name in reference for name in own]
    if len(used) < len(own):
        with pytest.raises(DataError, match="has not"):
            numbers_in(reference, own, range(len(own)), where="one", reference_where="other")


def test_two_classes_of_one_name_are_refused():
    with pytest.raises(DataError, match="two classes are called d\u00e9e"):
        class_names(["d\u00e9e", unicodedata.normalize("NFD", "d\u00e9e")])
