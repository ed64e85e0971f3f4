"""The watch over codebooks: what counts as a collapse in validation and in training, and when it is told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from voken_common.config.schema.run import HealthConfig, MeshConfig
from voken_common.training.collapse import CodeUse, CollapseWatch
from voken_jax.optimization.codebook_usage import distinct, nothing_seen, see
from voken_jax.parallel.sharding import make_mesh
from voken_torch.optimization.codebook_usage import SeenCodes


def use(share, codes=1000, tokens=100_000):
    return CodeUse(round(share * codes), codes, tokens)


def test_collapse_is_told_once_per_occurrence():
    watch = CollapseWatch(HealthConfig(collapse_usage=0.1, collapse_window=2))
    dead, alive = np.zeros(1000, np.int64), np.zeros(1000, np.int64)
    dead[:50], alive[:200] = 200, 50
    assert watch.validated(1, dead) is None
    text = watch.validated(2, dead)
    assert "step 2: the codebook has collapsed: the last 2 validation(s) used 5.00%, 5.00% of 1000 codes" in text
    assert "where 10000 tokens could use 100.00%" in text
    assert "docs/quantizers.md, section Guidance" in text
    assert watch.validated(3, dead) is None
    assert watch.validated(4, alive) is None
    assert watch.validated(5, dead) is None
    assert watch.validated(6, dead) is not None


def test_few_tokens_cannot_use_many_codes():
    watch, few = CollapseWatch(HealthConfig(collapse_window=1)), np.zeros(2**18, np.int64)
    few[:400] = 1
    assert watch.validated(1, few) is None, "400 tokens, 400 codes: as many as can be"
    few[:400] = 0
    few[0] = 400
    assert watch.validated(2, few) is not None
    assert CodeUse(400, 2**18, 400).possible == pytest.approx(400 / 2**18, rel=1e-3)


def test_training_must_be_low_for_all_of_the_steps():
    watch = CollapseWatch(HealthConfig(collapse_usage=0.1, collapse_steps=300))
    assert [watch.trained(step, use(0.05)) for step in (100, 200)] == [None, None]
    text = watch.trained(300, use(0.04))
    assert "step 300: the codebook has collapsed: for 300 steps training has used too few of its codes" in text
    assert "lately 4.00% of 1000 codes, where 100000 tokens could use 100.00%" in text
    assert "docs/quantizers.md, section Guidance" in text
    assert watch.trained(400, use(0.04)) is None, "told once"
    assert watch.trained(500, use(0.2)) is None
    assert [watch.trained(step, use(0.05)) is None for step in (600, 700, 800)] == [True, True, False]


def test_one_good_interval_begins_the_window_anew():
    watch = CollapseWatch(HealthConfig(collapse_steps=300))
    shares = (0.05, 0.05, 0.5, 0.05, 0.05)
    assert [watch.trained(100 * n, use(share)) for n, share in enumerate(shares, 1)] == [None] * 5
    assert watch.trained(600, use(0.05)) is not None


def test_a_continued_run_counts_its_own_steps():
    watch = CollapseWatch(HealthConfig(collapse_steps=300), first_step=5000)
    assert watch.trained(5100, use(0.0)) is None
    assert watch.trained(5300, use(0.0)) is not None


def test_an_interval_without_tokens_says_nothing():
    watch = CollapseWatch(HealthConfig(collapse_steps=1))
    assert watch.trained(100, CodeUse(0, 1000, 0)) is None, "all of its steps were refused"
    assert watch.trained(200, CodeUse(1, 1000, 1)) is None, "one token uses one code"


def test_training_and_validation_do_not_repeat_each_other():
    watch, dead = CollapseWatch(HealthConfig(collapse_window=1, collapse_steps=1)), np.zeros(1000, np.int64)
    dead[0] = 10_000
    assert watch.trained(1, use(0.01)) is not None
    assert watch.validated(2, dead) is None
    dead[:500] = 20
    assert watch.validated(3, dead) is None
    assert watch.trained(4, use(0.9)) is None
    dead[1:] = 0
    assert watch.validated(5, dead) is not None
    assert watch.trained(6, use(0.01)) is None


@pytest.mark.parametrize("mesh", [{}, {"data": 2, "fsdp": 2, "model": 2}])
def test_codes_of_all_devices_are_seen_once_and_refused_steps_not_at_all(mesh):
    mesh = make_mesh(MeshConfig(**mesh))
    seen, step = nothing_seen(mesh, 50), jax.jit(lambda s, i, g: see(mesh, s, i, g), donate_argnums=0)
    random, expected = np.random.default_rng(0), set()
    for good in (True, False, True):
        ids = random.integers(0, 50, (2, 8, 1, 1))
        seen = step(seen, ids, jnp.asarray(good))
        expected |= set(ids.ravel().tolist()) if good else set()
    assert 16 < len(expected) < 50
    assert (int(distinct(seen.flags)), int(seen.steps)) == (len(expected), 2)
    assert seen.flags.sharding.shard_shape(seen.flags.shape) == (1, 50)
    assert "all-gather" not in step.lower(seen, ids, jnp.asarray(True)).compile().as_text(), "nothing is exchanged"


def test_codes_are_seen_until_they_are_taken():
    codes = SeenCodes(50, torch.device("cpu"))
    codes.see([torch.tensor([[1, 2], [2, 2]]), torch.tensor([[7, 1]], dtype=torch.int32)])
    codes.see([torch.tensor([9])])
    assert codes.take() == CodeUse(4, 50, 7)
    assert codes.take() == CodeUse(0, 50, 0)
