"""The training command on one NPU: the checkpoints of a CPU run, and resume."""

import shutil

import pytest
import torch

from tests.support.tiny import write
from tests.unit.tokenizer.test_torch_step import assert_same, flat
from voken_torch.checkpoints.torch import read
from voken_torch.train import main


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Train four steps, or what is left of them; returns the checkpoint."""
    folder = tmp_path_factory.mktemp("train")

    def run(workdir, device):
        arguments = ["--config", write(folder), "--workdir", folder / workdir, "--device", device]
        assert main([*map(str, arguments), "--set", "training.steps=4", "--set", "validation.every=4"]) == 0
        return folder / workdir / "checkpoints" / "4.pt"

    return run


def state_of(file):
    content = read(file)
    tensors = {item: content[item] for item in ("generator", "generator_ema")} | content["rest"]
    return flat(tensors), content["data"], content["metrics"]


def test_a_run_is_that_of_the_cpu_and_resumes(train, capfd):
    on_npu = train("npu", "npu")
    expected, position, metrics = state_of(on_npu)
    assert {value.device for value in expected.values()} == {torch.device("cpu")}
    assert_same(state_of(train("cpu", "cpu"))[0], expected, 1e-4)

    half = on_npu.with_name("2.pt")
    resumed = on_npu.parents[2] / "resumed" / "checkpoints"
    resumed.mkdir(parents=True)
    shutil.copy(half, resumed)
    state, its_position, its_metrics = state_of(train("resumed", "npu"))
    assert_same(state, expected)
    assert (its_position, its_metrics) == (position, metrics)
    assert (resumed.parent / "pictures").is_dir()
