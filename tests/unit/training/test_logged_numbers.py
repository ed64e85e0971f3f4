"""Numbers that a run leaves: finite means, JSON that is JSON, one line per logging step, the best by finite values."""

import json
import math

import numpy as np
import pytest

from tests.support.tiny import TINY
from voken_common.checkpoints.steps import Meta, choose_step, kept_steps
from voken_common.config.loading import validate
from voken_common.metrics import HIGHEST_PSNR, bounded_psnr, psnr
from voken_common.training.log import RunLog
from voken_common.training.metrics_file import NAME, MetricsFile
from voken_common.training.validation import ValidationTotals


def strict(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_one_exact_image_leaves_the_mean_finite():
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (3, 8, 8, 3)).astype(np.float32)
    images[0] = -1
    found = np.clip(images + 0.1, -1, 1)
    found[0] = images[0]
    totals = ValidationTotals(pictures=0)
    totals.add({"image": images, "mask": np.ones(3)}, found, {})
    metrics = totals.result(np.ones(4, np.int64)).metrics
    expected = (HIGHEST_PSNR + psnr(images[1:], found[1:]).sum()) / 3
    assert metrics["psnr"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("wrong", range(1, 40, 3))
def test_the_bound_keeps_the_order(wrong):
    """More wrong values never give a higher PSNR, and below the bound nothing changes."""
    original = np.zeros((1, 8, 8, 3), np.uint8)
    values = []
    for count in (wrong, wrong - 1):
        image = original.copy()
        image.reshape(-1)[:count] = 1
        values.append(float(bounded_psnr(original, image)[0]))
        if count > 16:
            assert values[-1] == psnr(original, image)[0]
    assert values[0] <= values[1] <= HIGHEST_PSNR


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_nothing_is_ranked_by_what_is_not_finite(bad):
    config = validate(TINY | {"checkpoint": {"keep_last": 1, "keep_best": 1}}, "tiny")
    metrics = {1: {"psnr": bad}, 2: {"psnr": 20.0}, 3: {"psnr": 10.0}, 4: {"psnr": bad}, 5: {}}
    assert kept_steps(metrics, config.checkpoint) == {2, 5}
    metas = {number: Meta(config, number, values) for number, values in metrics.items()}
    assert choose_step({number: number for number in metas}, "best", metas.__getitem__) == 2
    text = json.dumps(metas[1].to_dict())
    assert strict(text)["metrics"] == {}
    assert Meta.from_dict(json.loads(text), "here").metrics == {}


def test_a_line_per_logged_step(tmp_path, capsys):
    with RunLog(tmp_path, total_steps=4, first_step=0, images_per_step=8) as log:
        log.training(2, {"loss": 0.5, "codebook_usage": 0.25, "codebook_usage_possible": 0.5}, ("loss",))
        log.scalars(2, {"psnr": math.inf}, prefix="validation/")
        log.training(4, {"loss": 0.25}, ("loss",))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 2/4", "step 4/4"]
    assert lines[0].endswith("images/s  loss=0.5  codebook_usage=25.00% of 50.00% possible")
    values = [strict(line) for line in (tmp_path / NAME).read_text().splitlines()]
    assert [line["step"] for line in values] == [2, 2, 4]
    assert (values[0]["train/loss"], values[1]) == (0.5, {"step": 2, "validation/psnr": None})
    assert values[2]["train/images_per_second"] > 0


def test_a_run_that_continues_writes_no_step_twice(tmp_path):
    file = MetricsFile(tmp_path, 0)
    for step in (1, 2, 3):
        file.write(step, {"loss": step})
    file.close()
    with (tmp_path / NAME).open("a") as cut:
        cut.write('{"step": 2, "lo')
    again = MetricsFile(tmp_path, 2)
    again.write(3, {"loss": 30})
    again.close()
    lines = [strict(line) for line in (tmp_path / NAME).read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1), (2, 2), (3, 30)]


def test_a_full_disk_does_not_end_the_run(tmp_path, caplog):
    (tmp_path / NAME).mkdir()
    file = MetricsFile(tmp_path, 0)
    file.write(1, {"loss": 1.0})
    file.close()
    assert "metrics.jsonl cannot be written (Is a directory): the run goes on without it" in caplog.text
