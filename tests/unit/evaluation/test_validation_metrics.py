"""Metrics of evaluation during training: against plain computation, over processes, and what may be asked for."""

import numpy as np
import pytest

from tests.support.evaluation import FakeEngine
from tests.support.tiny import TINY
from voken_common import metrics
from voken_common.checkpoints.steps import LOWER_IS_BETTER
from voken_common.config.loading import ConfigError, validate
from voken_common.evaluation.validation import MetricTotals
from voken_common.training.validation import ValidationTotals

NAMES = ("rfid", "ssim", "lpips_vgg")
IMAGES, BACK = np.random.default_rng(0).uniform(-1, 1, (2, 11, 16, 16, 3)).astype(np.float32)


def totals(rows):
    found = ValidationTotals(2, MetricTotals(NAMES, FakeEngine(9)))
    for start in range(rows.start, rows.stop, 4):
        stop = min(start + 4, rows.stop)
        pad = [(0, 4 - (stop - start)), (0, 0), (0, 0), (0, 0)]
        mask = np.array([1.0] * (stop - start) + [0.0] * (4 - (stop - start)))
        found.add({"image": np.pad(IMAGES[start:stop], pad), "mask": mask}, np.pad(BACK[start:stop], pad), {})
    return found


def test_two_processes_give_the_numbers_of_all_images():
    first, second = totals(range(6)), totals(range(6, 11))
    first.merge(second.without_pictures())
    found = first.result(np.ones(4, np.int64)).metrics
    engine = FakeEngine(9)
    pools = [engine.inception(x, "half_pixel").pool3 for x in (IMAGES, BACK)]
    assert found["rfid"] == pytest.approx(metrics.frechet_distance_of_features(*pools), rel=1e-5)
    assert found["ssim"] == pytest.approx(metrics.ssim(IMAGES, BACK).mean())
    assert found["lpips_vgg"] == pytest.approx(engine.lpips("vgg", IMAGES, BACK).mean(dtype=np.float64), rel=1e-6)


def test_nothing_is_asked_for_by_default():
    plain = ValidationTotals(1)
    plain.add({"image": IMAGES, "mask": np.ones(11)}, BACK, {})
    assert set(plain.result(np.ones(4, np.int64)).metrics) == {"psnr", "codebook_usage", "codebook_perplexity"}


def test_what_a_configuration_may_ask_for():
    with_rfid = TINY["validation"] | {"metrics": ["rfid"]}
    config = validate(TINY | {"validation": with_rfid, "checkpoint": {"best_metric": "rfid"}}, "x")
    assert config.validation.metrics == ("rfid",)
    assert config.checkpoint.best_metric in LOWER_IS_BETTER
    with pytest.raises(ConfigError, match=r"best_metric rfid is not measured: add it to validation.metrics"):
        validate(TINY | {"checkpoint": {"best_metric": "rfid"}}, "x")
