"""Training with the codebook split over the mesh's model axis: the numbers of one device."""

import jax
import numpy as np
import pytest

from tests.multidevice.test_step import BATCHES, assert_same, config_of, initial, run, run_of
from voken_jax.parallel.sharding import batch_shards

pytestmark = pytest.mark.usefixtures("x64")

CODEBOOK = "quantize.embedding.embedding"


def test_a_split_codebook_trains_like_a_whole_one():
    split = config_of("ibq", quantizer={"shard_codes": True}, mesh={"data": 4, "model": 2})
    expected, history = run(config_of("ibq"), 1, BATCHES)
    found, parallel = run(split, 8, BATCHES)
    assert_same(parallel, history)
    assert_same(found, expected)
    assert history[0]["entropy_loss"] != 0


def test_codes_and_their_moments_are_split():
    split = config_of("ibq", quantizer={"shard_codes": True}, mesh={"data": 4, "model": 2})
    assert batch_shards(run_of(split, 8).mesh) == 4
    state = initial(split, 8)
    for tree in (state.generator, state.generator_ema, state.generator_optimizer):
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        books = [leaf for path, leaf in leaves if getattr(path[-1], "key", None) == CODEBOOK]
        assert books
        for book in books:
            assert {shard.data.shape for shard in book.addressable_shards} == {(12, 6)}
            assert np.prod(book.shape) == 24 * 6
