"""Names of classes where numbers do: `--classes` and labels of `Generator.sample`."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voken_common.sampling.job import parse_classes
from voken_common.sampling.requests import check_labels

NAMES = ("cat", "grey", "great white", "sea-lion", "n01440764")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("grey", [1]),
        ("grey,cat", [1, 0]),
        ("great white", [2]),
        ("sea-lion,0", [3, 0]),
        ("3-4,grey", [3, 4, 1]),
        ("n01440764", [4]),
        ("name:cat,number:4", [0, 4]),
        ("all", [0, 1, 2, 3, 4]),
        ("cat,0,cat", [0]),
    ],
)
def test_classes_by_name(text, expected):
    assert parse_classes(text, 5, NAMES) == expected


@pytest.mark.parametrize(
    ("text", "names", "message"),
    [
        ("gray", NAMES, "no class is called 'gray'; did you mean grey"),
        ("gray", (), r"--classes gray: 'gray' is no class; expected numbers and ranges"),
        ("5", NAMES, "5 is not within the classes 0 to 4"),
        ("number:cat", NAMES, "'cat' is no class"),
        ("2", ("2", "10", "x"), r"2 is the name of class 0, and a number too: say name:2 or number:2"),
        ("1-2", ("a", "1-2", "x"), r"1-2 is the name of class 1, and a number too"),
    ],
)
def test_classes_that_are_none(text, names, message):
    with pytest.raises(ValueError, match=message):
        parse_classes(text, 5, names)


def test_names_that_are_numbers_can_be_meant_either_way():
    names = ("2", "10", "x")
    assert parse_classes("name:2", 3, names) == [0]
    assert parse_classes("number:2", 3, names) == [2]
    assert parse_classes("0", 3, names) == [0], "no class is called so"
    assert parse_classes("all", 3, ("x", "all", "y")) == [1]


@given(
    st.lists(st.text(st.characters(codec="ascii", categories=("L",)), min_size=1), min_size=1, unique=True), st.data()
)
def test_every_name_finds_its_number(names, data):
    number = data.draw(st.integers(0, len(names) - 1))
    assert parse_classes(names[number], len(names), names) == [number]
    assert check_labels(names[number], len(names), names).tolist() == [number]


def test_labels_by_name():
    np.testing.assert_array_equal(check_labels(["grey", 0, "cat"], 5, NAMES), [1, 0, 0])
    np.testing.assert_array_equal(check_labels("grey", 5, NAMES), [1])
    np.testing.assert_array_equal(check_labels(np.array([3, 1], np.uint8), 5, NAMES), [3, 1])
    with pytest.raises(ValueError, match=r"class 'grey': this generator knows its classes by number only"):
        check_labels(["grey"], 5)
