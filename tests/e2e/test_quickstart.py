"""The quickstart as a script, in both frameworks: a run, a table beside k-means, a picture, and one line of figures."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.tiny import TINY, write
from voken_common.config.loading import load_config
from voken_common.metrics import psnr
from voken_common.quickstart.comparison import held_out_crops

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("quickstart", ROOT / "scripts" / "quickstart.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["lfq", "ibq"])
def test_the_run_validates_on_the_crops_of_the_picture(name):
    data = load_config(ROOT / "configs" / f"quickstart_{name}.yaml").data
    assert data.validation_image_size == held_out_crops().shape[1]
    assert (data.validation.region, data.validation.crops) == ("held_out", 8)
    assert data.train.region == "train"


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_the_whole_script(script, framework, tmp_path, capsys):
    mapping = TINY | {"data": TINY["data"] | {"validation_image_size": 128}}
    workdir = tmp_path / "run"
    arguments = ["--config", str(write(tmp_path, mapping)), "--workdir", str(workdir), "--framework", framework]
    assert script.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    result = json.loads(lines[-1])
    assert result["bits_per_pixel"] == 2.0
    assert result["psnr_kmeans"] > 25
    assert result["psnr_worst"] <= result["psnr"] < result["psnr_kmeans"], "six steps are no training"
    row = next(line for line in lines if line.startswith("tiny "))
    assert float(row.split()[2]) == pytest.approx(result["psnr"], abs=0.011)
    # Validation during training is of the same crops.
    logged = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    last = [line["validation/psnr"] for line in logged if "validation/psnr" in line][-1]
    assert last == pytest.approx(result["psnr"], abs=0.05)
    tokenizer, _ = script.trained(load_config(write(tmp_path, mapping)), workdir, framework)
    originals = held_out_crops()
    _, again = script.through_ids(tokenizer, originals, framework)
    assert psnr(originals, again).mean() == pytest.approx(result["psnr"], abs=0.011)
    assert np.asarray(Image.open(result["picture"])).shape[1] > 4 * 128
    assert script.main([*arguments, "--set", "model.channels=7"]) == 2
    assert "divisible" in capsys.readouterr().err
