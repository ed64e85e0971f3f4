"""The benchmark of the input pipeline: what it measures is what it says, and it runs."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from voken_common.data import transforms
from voken_common.data.decode import decode_image

ROOT = Path(__file__).resolve().parents[3]


def load_script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


benchmark_data = load_script("benchmark_data")


def test_generated_jpegs_are_different_and_of_the_size_asked_for(tmp_path):
    paths = benchmark_data.generate(tmp_path, 20, (64, 48))
    assert len({Path(path).read_bytes() for path in paths}) == 20
    assert {Image.open(path).size for path in paths} == {(64, 48)}


def test_decode_to_target_is_the_evaluation_view(tmp_path):
    data = Path(benchmark_data.generate(tmp_path, 1, (64, 48))[0]).read_bytes()
    expected = transforms.center_crop(transforms.resize_short_side(decode_image(data), 32, "pil"), 32, "pil")
    np.testing.assert_array_equal(benchmark_data.to_target(data, 32), expected)


def test_ratios_are_within_rounds():
    results = {"a": [(10.0, 1.0), (30.0, 2.0), (5.0, 4.0)], "b": [(10.0, 2.0), (10.0, 1.0), (10.0, 4.0)]}
    assert benchmark_data.ratios(results, "a", "b") == (1.0, 1.0)
    assert benchmark_data.ratios(results, "b", "a") == (1.0, 1.0)
    assert benchmark_data.ratios(results, "a", "a") == (1.0, 1.0)
    assert benchmark_data.ratios({"a": [(3.0, 2.0)], "b": [(4.0, 1.0)]}, "a", "b") == (0.75, 0.5)


def test_the_torch_baseline_does_the_same_work(tmp_path):
    paths = benchmark_data.generate(tmp_path, 2, (64, 48))
    image = benchmark_data.TorchFiles(paths, 32)[1]
    assert tuple(image.shape) == (3, 32, 32)
    assert -1 <= float(image.min()) < float(image.max()) <= 1


@pytest.mark.slow
def test_the_benchmark_ends_in_one_json_line():
    command = [sys.executable, str(ROOT / "scripts" / "benchmark_data.py"), "--quick", "--fast", "--size", "160x120"]
    done = subprocess.run([*command, "--target", "32"], capture_output=True, text=True, check=True)
    summary = json.loads(done.stdout.splitlines()[-1])
    names = {"decode", "decode to target", "torch DataLoader", "pipeline, folder", "pipeline, tar"}
    assert names < set(summary["images_per_second"])
    assert all(rate > 0 for rate in summary["images_per_second"].values())
    assert {"pipeline_vs_dataloader", "pipeline_vs_decode", "pipeline_vs_decode_to_target"} < set(summary)
