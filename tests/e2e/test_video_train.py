"""Training a video tokenizer: inflated start, panels, resuming bit for bit, and the commands on what it makes."""

import json
import shutil

import numpy as np
import pytest

from tests.support.tiny import TINY, write
from tests.support.tiny_video import VIDEO, video_run, write_video
from voken_common.checkpoints.conversion.safetensors_file import read_safetensors
from voken_common.checkpoints.inflation import inflate
from voken_common.commands.main import main
from voken_common.config.loading import load_config
from voken_torch.checkpoints.torch import read
from voken_torch.training.run import train

pytestmark = pytest.mark.slow

IMAGE = TINY | {
    "model": VIDEO["model"] | {"network": "magvit2"},
    "training": {"batch_size": 8, "steps": 2, "log_every": 2},
    "validation": {"every": 2, "batch_size": 8, "pictures": 0},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Videos, an image run, and a video run inflated from it."""
    folder = tmp_path_factory.mktemp("video")
    (folder / "videos").mkdir()
    for number in range(3):
        write_video(folder / "videos" / f"{number}.mp4", 9 + number, sound=number == 0)
    train(load_config(write(folder, IMAGE)), folder / "image")
    train(config_of(folder), folder / "run")
    return folder


def config_of(folder):
    checkpoint = {"every": 2, "keep_last": 3, "keep_best": 0}
    mapping = video_run(folder / "videos", initialize={"inflate": str(folder / "image")}, checkpoint=checkpoint)
    return load_config(write(folder, mapping | {"training": {"batch_size": 2, "steps": 4, "log_every": 2}}))


def flat(content, prefix=""):
    if isinstance(content, dict):
        return {k: v for name, item in content.items() for k, v in flat(item, f"{prefix}/{name}").items()}
    return {prefix: content}


def test_a_run_that_continues_ends_bit_for_bit_as_one_that_did_not_stop(folder):
    whole = folder / "run" / "checkpoints"
    (folder / "again" / "checkpoints").mkdir(parents=True)
    shutil.copy(whole / "2.pt", folder / "again" / "checkpoints")
    train(config_of(folder), folder / "again")
    expected, found = flat(read(whole / "4.pt")), flat(read(folder / "again" / "checkpoints" / "4.pt"))
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert np.array_equal(np.asarray(value), np.asarray(found[name])), name


def test_panels_are_written(folder):
    names = {path.name for path in (folder / "run" / "pictures").iterdir()}
    assert {"reconstructions_00000004.png", "clips_00000004.mp4"} <= names


def test_inflate_command_gives_what_training_begins_with(folder, capsys):
    target = folder / "video.safetensors"
    arguments = ["inflate", "--framework", "torch", str(folder / "image"), str(target)]
    assert main([*arguments, "--config", str(folder / "tiny.yaml")]) == 0
    assert "2 frames per token" in capsys.readouterr().out
    meta, arrays = read_safetensors(target)
    image = read(folder / "image" / "checkpoints" / "2.pt")["generator_ema"]
    expected = inflate({k: v.numpy() for k, v in image.items()}, {k: a.shape for k, a in arrays.items()})
    assert all(np.array_equal(arrays[name], array) for name, array in expected.items())
    assert meta.tokenizer.model.is_video
    assert main(arguments) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["inflate", "--framework", "torch", str(folder / "run"), str(folder / "other.safetensors")]) == 2
    assert not (folder / "other.safetensors").exists()


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_reconstruct_writes_all_files_and_passes_over_what_is_no_video(folder, framework, capsys, tmp_path):
    source = tmp_path / "in"
    shutil.copytree(folder / "videos", source)
    (source / "broken.mp4").write_bytes(b"nothing")
    checkpoint = folder / "run"
    if framework == "jax":
        checkpoint = folder / "jax.safetensors"
        assert main(["inflate", "--framework", "torch", str(folder / "image"), str(checkpoint), "--overwrite"]) == 0
    arguments = ["--checkpoint", str(checkpoint), "--input", str(source), "--output", str(tmp_path / "out")]
    cut = ["--window", "5", "--fade", "1", "--tile", "32", "--blend", "8"]
    assert main(["reconstruct", "--framework", framework, *arguments, *cut, "--device", "cpu"]) == 0
    assert "mean of 3 video(s), 1 left out" in capsys.readouterr().out
    for number in range(3):
        found = json.loads((tmp_path / "out" / f"{number}.mp4.psnr.json").read_text())
        assert len(found["frames"]) == len(found["times"]) == 9 + number
        for suffix in ("reconstruction.mp4", "side_by_side.mp4", "strip.png", "ids.npz"):
            assert (tmp_path / "out" / f"{number}.mp4.{suffix}").stat().st_size
    with np.load(tmp_path / "out" / "0.mp4.ids.npz") as ids:
        assert ids["ids_00000"].shape == (6, 3, 16, 16)
        assert sum(len(ids[name]) for name in ids if name.startswith("times")) == 9 + 1 * (len(ids.files) - 5) // 2
