"""Generated images: formats, references, statistics for other tools, comparisons, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from tests.support.evaluation import FakeEngine
from voken_common import metrics
from voken_common.errors import UserError
from voken_common.evaluation import published
from voken_common.evaluation.generated import measure as generation
from voken_common.evaluation.generated import references
from voken_common.evaluation.generated.evaluate import SampleEvaluation, evaluate_samples
from voken_common.evaluation.generated.samples import DrawnSamples, open_samples
from voken_common.evaluation.report.compare import compare, different_conventions, write_comparison
from voken_common.evaluation.report.model import Measure, Report
from voken_common.evaluation.summary import Summary
from voken_common.evaluation.uncertainty import bootstrap, extrapolate


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """The covariance of 2048 features takes seconds; nothing is kept in the user's cache."""
    monkeypatch.setattr(FakeEngine.__init__, "__defaults__", (9,))
    monkeypatch.setattr("tests.support.evaluation.SPATIAL", 8)
    monkeypatch.setattr(references, "_FEATURES", {"fid": 9, "sfid": 8})
    monkeypatch.setenv("VOKEN_CACHE", str(tmp_path / "cache"))


def images(count, seed):
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), np.uint8) // (1 + seed)


@pytest.fixture
def files(tmp_path):
    np.savez_compressed(tmp_path / "samples.npz", arr_0=images(21, 1))
    np.savez(tmp_path / "reference.npz", arr_0=images(30, 2))
    return tmp_path


def evaluate(files, **changes):
    settings = {
        "output": files / "out",
        "reference": str(files / "reference.npz"),
        "batch_size": 4,
        "samples_per_shard": 8,
    }
    return evaluate_samples(open_samples(files / "samples.npz"), FakeEngine(), SampleEvaluation(**(settings | changes)))


def test_numbers_are_those_of_plain_computation(files):
    report = evaluate(files)
    engine = FakeEngine()
    gen, ref = (engine.inception(x, "tensorflow1") for x in (images(21, 1), images(30, 2)))
    manifold = metrics.precision_recall(ref.pool3, gen.pool3)
    score = metrics.InceptionScore(12)
    score.update_logits(gen.logits)
    expected = {
        "fid": metrics.frechet_distance_of_features(ref.pool3, gen.pool3),
        "sfid": metrics.frechet_distance_of_features(ref.spatial, gen.spatial),
        "inception_score": score.result()[0],
        "precision": manifold.precision,
        "recall": manifold.recall,
    }
    found = report.values()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-9), name
    assert "21 images instead of 50,000" in next(m for m in report.measures if m.key == "fid").note


def test_a_folder_measures_like_the_array(files):
    folder = files / "pictures"
    folder.mkdir()
    for number, image in enumerate(images(21, 1)):
        Image.fromarray(image).save(folder / f"{number:03d}.png")
    settings = SampleEvaluation(files / "o2", str(files / "reference.npz"), batch_size=4)
    report = evaluate_samples(open_samples(folder), FakeEngine(), settings)
    assert report.values() == pytest.approx(evaluate(files).values(), rel=1e-9)


def test_statistics_go_to_and_come_from_other_tools(files):
    reference = generation.load_reference(
        files / "reference.npz", FakeEngine(), resize="tensorflow1", batch_size=4, with_features=False
    )
    generation.save_statistics(files / "statistics.npz", reference)
    with np.load(files / "statistics.npz", allow_pickle=False) as data:
        features = FakeEngine().inception(images(30, 2), "tensorflow1").pool3
        np.testing.assert_allclose(data["mu"], features.mean(axis=0, dtype=np.float64), atol=1e-12)
        np.testing.assert_allclose(data["sigma"], np.cov(features.astype(np.float64), rowvar=False), atol=1e-12)
        # What pytorch-fid writes has these two arrays alone.
        np.savez(files / "foreign.npz", mu=data["mu"], sigma=data["sigma"])
    whole = evaluate(files).values()
    shared = evaluate(files, output=files / "o2", reference=str(files / "statistics.npz"))
    assert {k: whole[k] for k in shared.values()} == pytest.approx(shared.values(), rel=1e-9)
    assert "precision" not in shared.values()
    assert any("statistics only" in note for note in shared.notes)
    foreign = evaluate(files, output=files / "o3", reference=str(files / "foreign.npz"))
    assert foreign.values()["fid"] == pytest.approx(whole["fid"], rel=1e-9)
    with pytest.raises(UserError, match="computed with resize tensorflow1, samples are measured with half_pixel"):
        evaluate(files, output=files / "o4", reference=str(files / "statistics.npz"), resize="half_pixel")


def test_references_are_computed_once(files):
    engine = FakeEngine()
    for _ in range(2):
        generation.load_reference(
            files / "reference.npz", engine, resize="tensorflow1", batch_size=4, with_features=True
        )
    assert engine.batches == [4] * 8


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"arr_0": np.zeros((2, 8, 8, 3), np.float32)}, "arr_0 is float32, expected uint8"),
        ({"arr_0": np.zeros((2, 3, 8, 8), np.uint8)}, r"shape \(2, 3, 8, 8\), expected \(N, H, W, 3\)"),
        ({"arr_0": np.zeros((0, 8, 8, 3), np.uint8)}, r"shape \(0, 8, 8, 3\)"),
        ({"images": np.zeros((2, 8, 8, 3), np.uint8)}, "holds images; expected an array arr_0"),
    ],
)
def test_arrays_that_are_no_samples(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UserError, match=message):
        open_samples(tmp_path / "x.npz")


def test_paths_that_are_no_samples(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no pictures"):
        open_samples(tmp_path / "empty")
    with pytest.raises(UserError, match="no file or folder"):
        open_samples(tmp_path / "nothing.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(UserError, match="is not an .npz file"):
        open_samples(tmp_path / "text.npz")
    np.savez(tmp_path / "wrong.npz", mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(UserError, match=r"mu \(3,\) and sigma \(3, 3\); expected"):
        references.read_statistics(tmp_path / "wrong.npz")


def test_a_missing_class_and_another_size_are_errors(tmp_path):
    for label in (0, 2):
        (tmp_path / f"class_{label:04d}").mkdir()
        Image.fromarray(images(1, 0)[0]).save(tmp_path / f"class_{label:04d}" / "0.png")
    Image.new("RGB", (40, 40)).save(tmp_path / "grid.png")
    with pytest.raises(UserError, match="class 1 has 0 pictures and others have 1"):
        open_samples(tmp_path)
    (tmp_path / "class_0001").mkdir()
    Image.new("RGB", (9, 8)).save(tmp_path / "class_0001" / "0.png")
    samples = open_samples(tmp_path)
    assert len(samples) == 3
    with pytest.raises(UserError, match=r"0.png has 8x9 pixels, the first has 8x8"):
        samples.read(0, 3)


def test_drawn_samples_always_ask_for_whole_batches():
    asked = []

    def draw(numbers):
        asked.append(len(numbers))
        return images(50, 0)[numbers]

    samples = DrawnSamples(21, draw, 4, "a generator")
    np.testing.assert_array_equal(samples.read(3, 9), images(50, 0)[3:9])
    assert asked == [4, 4]


def test_reading_an_array_in_any_order(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", arr_0=images(11, 0))
    samples = open_samples(tmp_path / "x.npz")
    for start, stop in ((0, 3), (7, 11), (2, 5)):
        np.testing.assert_array_equal(samples.read(start, stop), images(11, 0)[start:stop])


def test_bootstrap_and_extrapolation():
    values = np.random.default_rng(0).normal(3, 2, 400)
    low, high = bootstrap(values)
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)
    assert low < values.mean() < high
    sizes = np.array([500, 1000, 2000])
    assert extrapolate(sizes, 5 + 300 / sizes) == pytest.approx(5)


def test_published_figures_stand_beside_ours():
    model = published.find_model("imagenet_ibqgan_262144")
    summary = Summary({"rfid": 1.5, "lpips_vgg": 0.2}, {}, 1000, {}, None)
    found = published.measures(summary, model, published.Circumstances("ImageNet", "256x256", ("bfloat16",)))
    assert (found[0].published, found[0].difference) == (1.0, 0.5)
    assert found[0].not_comparable == ("bfloat16", "1,000 images instead of 50,000")
    assert "does not say which network" in found[1].note
    whole = published.measures(
        Summary({"rfid": 1.0}, {}, 50_000, {}, None), model, published.Circumstances("ImageNet", "256x256")
    )
    assert whole[0].not_comparable == ()
    assert published.find_model("TencentARC/IBQ-Tokenizer-262144@main").name == "imagenet_ibqgan_262144"
    assert published.guess_data_set("/data/ILSVRC2012/val") == "ImageNet"


def test_comparison(tmp_path, capsys):
    def report(title, value, resize):
        measures = (Measure("psnr", value, (value - 1, value + 1)), Measure("rfid", 2 * value))
        return Report("tokenizer", title, measures, {"resize": resize})

    first, second = report("a <b>", 20.0, "pil"), report("c", 21.0, "cv2")
    assert [c.verdict for c in compare(first, second)] == ["intervals overlap", "first is better"]
    assert different_conventions(first, second) == ["resize: pil | cv2"]
    write_comparison(first, second, tmp_path)
    assert "measured differently: resize: pil | cv2" in capsys.readouterr().out
    page = (tmp_path / "comparison.html").read_text()
    assert "<svg" in page
    assert "<b>" not in page
