"""Learning-rate and weight-decay schedules, in NumPy and in JAX."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.golden_cases import assert_close
from voken_common.config.schedules import Schedule, cosine_weight_decay

KINDS = ["schedules"]


@pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax"])
def test_schedules(case, xp, x64):
    steps = xp.asarray(case.config["iterations"])
    for spec in case.config["cases"]:
        total = spec.get("max", int(steps.max()) + 1)
        if "wd" in spec:
            found, expected = cosine_weight_decay(steps, spec["start"], spec["end"], total, xp), spec["wd"]
        else:
            schedule = Schedule(
                kind={"lin0": "linear"}.get(spec["name"], spec["name"]),
                warmup=spec.get("warmup", 0),
                total=total,
                start_factor=spec.get("wp0", 0.0),
                end_factor=spec.get("wpe", spec.get("min_multiplier", 0.0)),
            )
            found, expected = schedule(steps, xp), spec["lr"]
        assert_close(found, np.asarray(expected, np.float64), spec["name"])
        if "lr" in spec:
            np.testing.assert_allclose(float(schedule(int(steps[5]), xp)), spec["lr"][5])
