"""Measuring clips: per frame, against plain computation, topped up by seed."""

import numpy as np
import pytest

from tests.support.evaluation import FakeVideoEngine, FakeVideoTokenizer
from voken_common import metrics
from voken_common.data.transforms import to_float
from voken_common.evaluation.shards import Shards
from voken_common.evaluation.summary import summarize
from voken_common.evaluation.videos.measure import VideoMeasurement, measure_clips, topped_up
from voken_common.pixels import to_uint8

CLIPS, FRAMES = 5, 3
PIXELS = np.random.default_rng(0).integers(0, 256, (CLIPS, FRAMES, 16, 16, 3), np.uint8)
PIXELS[2] //= 3


def loader(rank):
    return {"video": PIXELS[rank], "label": 0, "mask": 1.0, "bad": []}


def measured(folder, wanted, **settings):
    shards = Shards(folder, settings, total=wanted, size=4)
    measure_clips(
        FakeVideoTokenizer(None),
        FakeVideoEngine(),
        topped_up(loader, CLIPS, wanted, seed=3),
        shards,
        VideoMeasurement(batch_size=2),
    )
    return summarize(shards, VideoMeasurement().metrics, codes=16, resamples=0)


def test_numbers_are_those_of_plain_computation(tmp_path):
    found = measured(tmp_path, CLIPS)
    tokenizer, engine = FakeVideoTokenizer(None), FakeVideoEngine()
    clips = to_float(PIXELS)
    back = tokenizer.decode(tokenizer.encode(clips))
    frames = [x.reshape(-1, 16, 16, 3) for x in (PIXELS, back)]
    first, second = engine.video(clips), engine.video(to_float(to_uint8(back)))
    assert found.samples == CLIPS
    assert found.values["psnr"] == pytest.approx(metrics.bounded_psnr(*frames).mean())
    assert found.values["ssim"] == pytest.approx(metrics.ssim(*frames).mean())
    # Features are float32, rounded otherwise in batches of another size.
    assert found.values["rfvd"] == pytest.approx(metrics.frechet_distance_of_features(first, second), rel=1e-5)
    lpips = engine.lpips("vgg", *(x.reshape(-1, 16, 16, 3) for x in (clips, back)))
    assert found.values["lpips_vgg"] == pytest.approx(lpips.mean(dtype=np.float64), rel=1e-6)
    assert found.values["bits_per_pixel"] == pytest.approx(4 * 16 / 256)


def test_small_sets_are_topped_up_by_seed(tmp_path):
    ranks = []
    more = topped_up(lambda rank: ranks.append(rank) or loader(rank), CLIPS, 12, seed=3)
    for rank in range(12):
        more(rank)
    assert ranks[:CLIPS] == list(range(CLIPS))
    assert set(ranks[CLIPS:]) <= set(range(CLIPS))
    assert measured(tmp_path / "a", 12).values == measured(tmp_path / "b", 12).values
    assert topped_up(loader, CLIPS, 3, seed=0) is loader


def test_metrics_of_images_are_refused():
    with pytest.raises(ValueError, match="'rfid' is not known for videos; expected some of rfvd"):
        VideoMeasurement(("rfid",))
