"""The table of names: reversible, and complete or an error."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voken_common.checkpoints import weight_names as names

LEAVES = [
    ("encoder.norm_out.weight", (8,), "encoder.norm_out.scale", (8,)),
    ("encoder.conv_in.weight", (8, 3, 5, 4), "encoder.conv_in.kernel", (5, 4, 3, 8)),
    ("encoder.conv_in.conv_1.weight", (8, 3, 2, 5, 4), "encoder.conv_in.conv_1.kernel", (2, 5, 4, 3, 8)),
    ("decoder.adaptive.0.gamma.weight", (8, 3), "decoder.adaptive.0.gamma.kernel", (3, 8)),
    ("quantize.embedding.weight", (16, 4), "quantize.embedding.embedding", (16, 4)),
    ("decoder.adaptive.0.gamma.bias", (8,), "decoder.adaptive.0.gamma.bias", (8,)),
    ("main.3.running_var", (8,), "main.3.running_var", (8,)),
    ("main.3.num_batches_tracked", (), "main.3.num_batches_tracked", ()),
    ("blocks.0.1.kernel", (1, 1, 4, 4), "blocks.0.1.kernel", (1, 1, 4, 4)),
    ("scaling_layer.scale", (1, 3, 1, 1), "scaling_layer.scale", (1, 3, 1, 1)),
    ("weight", (8, 3), "kernel", (3, 8)),
]

PART = st.from_regex(r"[a-z][a-z0-9_]{0,8}|[0-9]{1,2}", fullmatch=True)
SHAPE = st.lists(st.integers(1, 4), min_size=1, max_size=5)


@pytest.mark.parametrize("key, shape, path, jax_shape", LEAVES)
def test_leaf_transforms(key, shape, path, jax_shape):
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    ((found, laid_out),) = names.to_jax({key: array}).items()
    assert (found, laid_out.shape) == (path, jax_shape)
    ((back, restored),) = names.to_torch({found: laid_out}).items()
    assert back == key
    np.testing.assert_array_equal(restored, array)


def test_convolution_layout():
    torch = np.random.default_rng(0).normal(size=(7, 3, 5, 4))
    jax = names.to_jax({"conv.weight": torch})["conv.kernel"]
    assert jax[4, 2, 1, 6] == torch[6, 1, 4, 2]


@given(st.lists(PART, max_size=4), st.sampled_from(["weight", "bias", "running_mean"]), SHAPE)
def test_any_torch_key_comes_back(parents, leaf, shape):
    key = ".".join([*parents, leaf])
    array = np.arange(np.prod(shape)).reshape(shape)
    there = names.to_jax({key: array})
    back = names.to_torch(there)
    assert list(back) == [key]
    np.testing.assert_array_equal(back[key], array)


@given(st.lists(PART, min_size=1, max_size=4), st.sampled_from(["kernel", "scale", "embedding", "bias"]))
def test_any_jax_path_comes_back(parents, leaf):
    path = ".".join([*(["embedding"] if leaf == "embedding" else parents), leaf])
    ndim = {"kernel": 4, "scale": 1, "embedding": 2, "bias": 1}[leaf]
    assert names.to_jax_name(names.to_torch_name(path), ndim) == path


def test_a_scalar_weight_is_an_error():
    with pytest.raises(names.NameMismatch, match="temperature.weight is a scalar weight"):
        names.to_jax_name("temperature.weight", 0)


def test_ema_name():
    assert names.ema_name("encoder.down.0.block.1.conv1.weight") == "model_ema.encoderdown0block1conv1weight"


def test_missing_and_unexpected_names_are_all_listed():
    with pytest.raises(names.NameMismatch) as caught:
        names.require_same_names(["a.conv1.kernel", "c"], ["a.conv_1.kernel", "c", "d"], "photo.ckpt")
    text = str(caught.value)
    assert text.startswith("photo.ckpt: 2 name(s) missing, 1 unexpected")
    assert "missing: a.conv_1.kernel (nearest: a.conv1.kernel)" in text
    assert "unexpected: a.conv1.kernel (nearest: a.conv_1.kernel)" in text
    names.require_same_names(["a", "b"], ["b", "a"], "same")


def test_long_lists_are_cut():
    with pytest.raises(names.NameMismatch, match=r"\.\.\. and 5 more missing"):
        names.require_same_names([], [f"w{i}" for i in range(25)], "empty")


def test_shapes():
    with pytest.raises(names.NameMismatch, match=r"a: found \(2, 3\), expected \(3, 2\)"):
        names.require_same_shapes({"a": np.zeros((2, 3))}, {"a": np.zeros((3, 2))}, "x")


def test_two_weights_under_one_name():
    with pytest.raises(names.NameMismatch, match="two weights would be called same"):
        names.map_names({"a": 1, "b": 2}, lambda name: "same")
    assert names.map_names({"a": 1}, lambda name: "x." + name) == {"x.a": 1}
