"""Evaluating a tokenizer: against plain computation, killed, shared, at original size, and what is refused."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.support.evaluation import FakeEngine, FakeTokenizer
from tests.support.tiny import TINY
from voken_common import metrics
from voken_common.config.loading import validate
from voken_common.data.images import ValidationRow
from voken_common.data.sources.build import build_source
from voken_common.data.transforms import to_float
from voken_common.errors import UserError, WorkdirError
from voken_common.evaluation.images.evaluate import TokenizerEvaluation, evaluate_tokenizer
from voken_common.evaluation.images.measure import ImageMeasurement, measure
from voken_common.evaluation.report.model import read_json
from voken_common.evaluation.report.write import write_report
from voken_common.evaluation.shards import Shards

COUNT = 23


@pytest.fixture(scope="module")
def config():
    settings = TINY | {"quantizer": {"kind": "lfq", "codebook_size": 16, "code_dim": 4}}
    settings |= {"model": TINY["model"] | {"z_channels": 4}}
    return validate(settings, "tiny")


@pytest.fixture(autouse=True)
def small_features(monkeypatch):
    """The covariance of 2048 features takes seconds."""
    monkeypatch.setattr(FakeEngine.__init__, "__defaults__", (9,))


def data_of(config, count=COUNT):
    source = config.data.validation.model_copy(update={"crops": count})
    return config.data.model_copy(update={"train": source, "cache": False})


def asked(config, folder, **changes):
    settings = {"measurement": ImageMeasurement(batch_size=4), "samples_per_shard": 8, "data": data_of(config)}
    return TokenizerEvaluation(output=folder, **(settings | changes))


def evaluate(config, folder, **changes):
    return evaluate_tokenizer(FakeTokenizer(config), FakeEngine(), asked(config, folder, **changes))


def plain(config):
    """All images at once, without shards, batches or threads."""
    source = build_source(data_of(config).train)
    rows = [ValidationRow(source, data_of(config), COUNT)(rank) for rank in range(COUNT)]
    pixels = np.stack([row["image"] for row in rows])
    images, tokenizer, engine = to_float(pixels), FakeTokenizer(config), FakeEngine()
    ids = tokenizer.encode(images)
    back = tokenizer.decode(ids)
    counts = np.bincount(ids.reshape(-1), minlength=16)
    first, second = (engine.inception(x, "half_pixel") for x in (images, back))
    score = metrics.InceptionScore(12)
    score.update_logits(second.logits)
    return {
        "psnr": metrics.bounded_psnr(pixels, back).mean(),
        "ssim": metrics.ssim(pixels, back).mean(),
        "lpips_alex": engine.lpips("alex", images, back).mean(dtype=np.float64),
        "lpips_vgg": engine.lpips("vgg", images, back).mean(dtype=np.float64),
        "inception_score": score.result()[0],
        "rfid": metrics.frechet_distance_of_features(first.pool3, second.pool3),
        "codebook_usage": np.count_nonzero(counts) / 16,
        "codebook_perplexity": metrics.codebook_perplexity(counts),
        "bits_per_pixel": 4 / 16,
    }


def test_numbers_are_those_of_plain_computation(config, tmp_path):
    engine = FakeEngine()
    report = evaluate_tokenizer(FakeTokenizer(config), engine, asked(config, tmp_path))
    assert set(engine.batches) == {4}
    found = report.values()
    for name, value in plain(config).items():
        # Features are float32, and their rounding is all that is left of a small distance.
        assert found[name] == pytest.approx(value, rel=1e-6, abs=1e-8), name
    interval = next(m.interval for m in report.measures if m.key == "psnr")
    assert interval[0] < found["psnr"] < interval[1]
    assert report.conventions["images"] == str(COUNT)
    assert "NOT the published file" in report.convention_line


def test_killed_and_continued_is_undisturbed(config, tmp_path):
    undisturbed = evaluate(config, tmp_path / "a")

    class Killed(FakeEngine):
        def lpips(self, net, first, second):
            if len(self.batches) >= 6:
                raise KeyboardInterrupt
            return super().lpips(net, first, second)

    with pytest.raises(KeyboardInterrupt):
        evaluate_tokenizer(FakeTokenizer(config), Killed(), asked(config, tmp_path / "b"))
    kept = sorted(path.name for path in (tmp_path / "b" / "features").glob("shard-*.npz"))
    assert kept == ["shard-00000.npz"]
    assert not list((tmp_path / "b").rglob("*.part"))
    continued = evaluate(config, tmp_path / "b")
    assert continued.values() == undisturbed.values()
    assert continued.speed["images"] == COUNT - 8


def test_two_processes_are_one(config, tmp_path):
    alone = evaluate(config, tmp_path / "alone")
    first = evaluate(config, tmp_path / "two", process_index=0, process_count=2)
    assert first is None
    second = evaluate(config, tmp_path / "two", process_index=1, process_count=2)
    assert second.measures == alone.measures


def test_other_settings_do_not_mix(config, tmp_path):
    evaluate(config, tmp_path)
    with pytest.raises(WorkdirError, match=r"other settings \(batch_size; batch_size was 4, is 8\)"):
        evaluate(config, tmp_path, measurement=ImageMeasurement(batch_size=8))
    (tmp_path / "features" / "shard-00001.npz").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(WorkdirError, match=r"shard-00001.npz is damaged .*delete it and run the same command again"):
        evaluate(config, tmp_path)


def test_original_size(config, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    random = np.random.default_rng(0)
    sizes = [(17, 30), (40, 21), (32, 32)]
    for number, size in enumerate(sizes):
        Image.fromarray(random.integers(0, 255, (*size, 3), np.uint8)).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"not a picture")
    section = {"train": {"kind": "image_folder", "path": str(folder)}, "image_size": 16, "max_bad_fraction": 0.5}
    data = validate(config.model_dump(mode="json") | {"data": section}, "x").data
    measurement = ImageMeasurement(("rfid", "psnr", "ssim", "usage"), original=True, multiple=4, batch_size=4)
    report = evaluate(config, tmp_path / "out", data=data, measurement=measurement)
    assert report.conventions["images"] == "3"
    assert "1 images could not be decoded" in report.notes[0]
    tokens = sum(-(-h // 4) * -(-w // 4) for h, w in sizes)
    assert report.values()["bits_per_pixel"] == pytest.approx(4 * tokens / sum(h * w for h, w in sizes))
    with pytest.raises(ValueError, match="lpips_alex is not measured at original resolution"):
        ImageMeasurement(original=True)


def test_report_files(config, tmp_path, capsys):
    report = evaluate(config, tmp_path)
    write_report(report, tmp_path)
    assert read_json(tmp_path / "report.json") == report
    record = json.loads((tmp_path / "report.json").read_text())
    assert record["convention_line"] == report.convention_line
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(report.pictures) == 4
    assert "<script" not in page
    assert "http://" not in page
    assert "rFID" in capsys.readouterr().out
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(UserError, match="is not a report of voken evaluate"):
        read_json(tmp_path / "other.json")


def test_unknown_metric():
    with pytest.raises(ValueError, match="metric 'fid' is not known; expected some of rfid, is"):
        ImageMeasurement(("fid",))


def test_only_padding_in_a_batch_is_not_measured(config, tmp_path):
    """Samples that cannot be decoded leave an empty shard, and the sum of nothing is an error in words."""
    shards = Shards(tmp_path, {}, total=4, size=4)

    def loader(rank):
        return {"image": np.zeros((16, 16, 3), np.uint8), "label": 0, "mask": 0.0, "bad": []}

    engine = FakeEngine()
    measure(FakeTokenizer(config), engine, loader, shards, ImageMeasurement(batch_size=4))
    assert engine.batches == []
    assert len(shards.column("rank")) == 0
