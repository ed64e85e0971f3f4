"""Ids of every integer type, in arrays, lists and tensors, mean the same codes in both frameworks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from voken_common.data.tokens.format import Record, decode_record, encode_record, join_ids, split_ids
from voken_common.metrics import CodebookCounter
from voken_jax import quantizers as jax_quantizers
from voken_torch import quantizers as torch_quantizers

TYPES = [np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)]
FORMS = {
    "numpy": lambda a: a,
    "list": lambda a: a.tolist(),
    "jax": lambda a: jnp.asarray(a),
    "torch": lambda a: torch.from_numpy(np.array(a)),
}
BOTH = [jax_quantizers, torch_quantizers]
shapes = npst.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=2)


def same(found, expected):
    """Equal values; a list of nothing has lost the shape it was made from."""
    found = np.asarray(found)
    np.testing.assert_array_equal(found if expected.size else found.reshape(expected.shape), expected)


def forms_of(quantizers):
    """Arrays of one framework are not offered to the other."""
    other = "torch" if quantizers is jax_quantizers else "jax"
    return st.sampled_from([name for name in FORMS if name != other])


def ids_below(count, shape):
    """Arrays of any integer type with ids that it holds."""

    def of_type(kind):
        most = min(count - 1, np.iinfo(kind).max)
        return npst.arrays(kind, shape, elements=st.integers(0, int(most)))

    return st.sampled_from(TYPES).flatmap(of_type)


@pytest.mark.parametrize("quantizers", BOTH)
@settings(deadline=None, max_examples=12)
@given(data=st.data())
def test_split_and_join_hold_for_any_type(quantizers, data):
    bits = data.draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    shape = data.draw(shapes)
    pre, post = (data.draw(ids_below(2**width, shape)) for width in bits)
    form = FORMS[data.draw(forms_of(quantizers))]
    expected = pre.astype(np.int64) + post.astype(np.int64) * 2 ** bits[0]
    joined = quantizers.join_indices(form(pre), form(post), bits)
    assert np.asarray(joined).dtype == np.int32
    same(joined, expected)
    for part, found in zip((pre, post), quantizers.split_indices(joined, bits), strict=True):
        same(found, part.astype(np.int64))


@pytest.mark.parametrize("quantizers", BOTH)
@settings(deadline=None, max_examples=12)
@given(data=st.data())
def test_codes_hold_for_any_type(quantizers, data):
    dim = data.draw(st.integers(1, 31))
    ids = data.draw(ids_below(2**dim, data.draw(shapes)))
    codes = np.asarray(quantizers.indices_to_codes(FORMS[data.draw(forms_of(quantizers))](ids), dim))
    expected = 2 * ((ids.astype(np.int64)[..., None] >> np.arange(dim)) & 1) - 1
    same(codes, expected)


@pytest.mark.parametrize("quantizers", BOTH)
@settings(deadline=None, max_examples=12)
@given(data=st.data())
def test_lookup_holds_for_any_type(quantizers, data):
    codebook = np.arange(600, dtype=np.float32).reshape(300, 2)
    ids = data.draw(ids_below(300, data.draw(shapes)))
    given_codebook = jnp.asarray(codebook) if quantizers is jax_quantizers else torch.from_numpy(codebook)
    found = quantizers.codebook_lookup(FORMS[data.draw(forms_of(quantizers))](ids), given_codebook)
    same(found, codebook[ids.astype(np.int64)])


def calls(quantizers, form):
    codebook = np.ones((200, 2), np.float32)
    codebook = jnp.asarray(codebook) if quantizers is jax_quantizers else torch.from_numpy(codebook)
    return {
        "indices_to_codes": (256, lambda ids: quantizers.indices_to_codes(form(ids), 8)),
        "split_indices": (256, lambda ids: quantizers.split_indices(form(ids), (3, 5))),
        "join_indices pre": (8, lambda ids: quantizers.join_indices(form(ids), form(ids * 0), (3, 5))),
        "join_indices post": (32, lambda ids: quantizers.join_indices(form(ids * 0), form(ids), (3, 5))),
        "codebook_lookup": (200, lambda ids: quantizers.codebook_lookup(form(ids), codebook)),
    }


@pytest.mark.parametrize("name", list(calls(jax_quantizers, FORMS["numpy"])))
@pytest.mark.parametrize("kind", TYPES, ids=str)
@pytest.mark.parametrize("quantizers", BOTH)
def test_out_of_range_is_an_error(quantizers, kind, name):
    for form in ("numpy", "list", "jax" if quantizers is jax_quantizers else "torch"):
        count, call = calls(quantizers, FORMS[form])[name]
        call(np.array([[0, min(count - 1, np.iinfo(kind).max)]], kind))
        wrong = [value for value in (-1, count, 2**63) if np.iinfo(kind).min <= value <= np.iinfo(kind).max]
        if form in ("jax", "list"):
            wrong = [value for value in wrong if value < (2**31 if form == "jax" else 2**63)]
        for value in wrong:
            with pytest.raises(ValueError, match=rf"run from .* expected 0 to {count - 1}"):
                call(np.array([0, value], kind))


@pytest.mark.parametrize("quantizers", BOTH)
@pytest.mark.parametrize("ids", [np.array([0.0, 1.0]), np.array([True]), [1.5]])
def test_what_is_no_integer_is_refused(quantizers, ids):
    for count_and_call in calls(quantizers, lambda a: a).values():
        with pytest.raises(ValueError, match="expected integers"):
            count_and_call[1](np.asarray(ids) if isinstance(ids, list) else ids)


def test_inside_a_program_out_of_range_gives_no_code():
    codebook = jnp.ones((5, 2))
    looked = jax.jit(lambda ids: jax_quantizers.codebook_lookup(ids, codebook))(jnp.array([4, -1, 5, -5]))
    codes = jax.jit(lambda ids: jax_quantizers.indices_to_codes(ids, 3))(jnp.array([7, -1, 8, -8], jnp.int8))
    for found in (looked, codes):
        assert np.isfinite(found[0]).all()
        assert np.isnan(found[1:]).all()


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_statistics_take_any_type(kind):
    ids = np.array([[1, 1], [2, 100]], kind)
    expected = np.bincount(ids.reshape(-1).astype(int), minlength=256)
    for form, quantizers in (("jax", jax_quantizers), ("torch", torch_quantizers)):
        counted = quantizers.update_statistics(quantizers.init_statistics(256), FORMS[form](ids))
        np.testing.assert_array_equal(np.asarray(counted.counts), expected)
    counter = CodebookCounter(256)
    counter.update(ids)
    counter.update([])
    np.testing.assert_array_equal(counter.counts, expected)


@settings(deadline=None)
@given(data=st.data())
def test_tokens_of_shards_hold_for_any_type(data):
    vocabularies = data.draw(st.lists(st.sampled_from([1, 2, 64, 256, 300, 4096, 2**17]), min_size=1, max_size=2))
    count = int(np.prod(vocabularies))
    if count > 2**31:
        vocabularies, count = vocabularies[:1], vocabularies[0]
    ids = data.draw(ids_below(count, (data.draw(st.integers(0, 5)),)))
    tokens = split_ids(ids, vocabularies)
    np.testing.assert_array_equal(join_ids(tokens, vocabularies), ids.astype(np.int64))
    small = tokens.astype(data.draw(st.sampled_from([np.int32, np.uint32, np.int64, np.uint64])))
    record = decode_record(encode_record(Record(small, 3, "a"), vocabularies), vocabularies, len(ids))
    np.testing.assert_array_equal(record.tokens, tokens)


@pytest.mark.parametrize("wrong", [[256], [-1], [1.0], np.array([300], np.uint16)])
def test_ids_outside_the_vocabularies_are_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        split_ids(wrong, (16, 16))
    with pytest.raises(ValueError, match="expected"):
        join_ids(np.asarray(wrong)[:, None], (16,))
