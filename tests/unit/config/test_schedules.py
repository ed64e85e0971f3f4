"""Schedules at their edges, and how a configuration becomes one."""

import numpy as np
import pytest

from tests.unit.config.test_config import LFQ, changed
from voken_common.config.loading import validate
from voken_common.config.schedules import Schedule, build_schedule, cosine_weight_decay

KINDS = ["constant", "linear", "cos", "linear-warmup", "linear-warmup_cosine-decay"]


def schedule(kind, **changes):
    settings = {"warmup": 10, "total": 100, "start_factor": 0.005, "end_factor": 0.1}
    return Schedule(kind, **(settings | changes))


@pytest.mark.parametrize("kind", KINDS)
def test_no_warm_up_starts_at_one(kind):
    assert schedule(kind, warmup=0)(0) == 1.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("warmup", [0, 1, 5])
@pytest.mark.parametrize("total", [1, 2, 5])
def test_short_runs_are_finite(kind, warmup, total):
    factors = schedule(kind, warmup=warmup, total=total)(np.arange(total + 2))
    assert np.isfinite(factors).all()
    assert (factors[:total] >= 0).all()
    assert (factors[:total] <= 1 + 1e-12).all()


@pytest.mark.parametrize("kind", KINDS)
def test_warm_up_is_a_line_that_meets_one(kind):
    factors = schedule(kind)(np.arange(11))
    assert factors[0] == (0.0 if kind.startswith("linear-") else 0.005)
    np.testing.assert_allclose(np.diff(factors[:10]), factors[1] - factors[0])
    assert factors[10] == pytest.approx(1.0)


@pytest.mark.parametrize("kind, last", [("linear", 0.1), ("cos", 0.1), ("constant", 1.0), ("linear-warmup", 1.0)])
def test_the_last_step_has_the_end_factor(kind, last):
    assert schedule(kind)(99) == pytest.approx(last)


def test_cosine_decay_is_clamped_from_below():
    factors = schedule("linear-warmup_cosine-decay")(np.arange(10, 100))
    assert factors.min() == 0.1
    assert (np.diff(factors) <= 0).all()


def test_drops_multiply_once_each_and_stay():
    factors = schedule("constant", warmup=0, drops=(20, 50), drop_factor=0.1)(np.asarray([19, 20, 49, 50, 99]))
    np.testing.assert_allclose(factors, [1.0, 0.1, 0.1, 0.01, 0.01])


def test_drops_of_a_configuration():
    """After epoch 2 the factor drops at the first step of epoch 3; `drop_steps: [d]` means 0-based step d - 1."""
    by_epoch = changed(LFQ, optimizer__schedule__drop_epochs=[2], training__epochs=4, training__steps=None)
    factors = build_schedule(validate(by_epoch, "x"), steps_per_epoch=7, total_steps=28)(np.arange(28))
    np.testing.assert_allclose(factors, [1.0] * 14 + [0.1] * 14)
    by_step = changed(LFQ, optimizer__schedule__drop_steps=[4])
    factors = build_schedule(validate(by_step, "x"), steps_per_epoch=7, total_steps=6)(np.arange(6))
    np.testing.assert_allclose(factors, [1.0] * 3 + [0.1] * 3)


def test_warm_up_in_epochs():
    config = validate(changed(LFQ, optimizer__schedule={"kind": "cos", "warmup_epochs": 1.5}), "x")
    assert build_schedule(config, steps_per_epoch=7, total_steps=70).warmup == 10


def test_weight_decay_moves_from_start_to_end():
    factors = cosine_weight_decay(np.arange(100), 0.05, 0.08, 100)
    assert (factors[0], factors[-1]) == (0.05, pytest.approx(0.08))
    assert (np.diff(factors) >= 0).all()
    assert cosine_weight_decay(0, 0.05, 0.08, 1) == 0.05
