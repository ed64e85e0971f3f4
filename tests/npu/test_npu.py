"""PyTorch training on a simulated NPU, in other processes: a device once registered stays for the whole process."""

import sys
from pathlib import Path

import torch

from tests.support.tiny import write
from tests.unit.tokenizer.test_torch_step import assert_same
from voken_torch.checkpoints.torch import read_meta, steps_in

INSIDE = Path(__file__).parent / "inside"
PYTEST = (sys.executable, "-m", "pytest", "--quiet", "--noconftest", "-p", "no:cacheprovider")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")


def test_one_device(run_on_npu, tmp_path):
    output = run_on_npu(*PYTEST, "--basetemp", tmp_path / "inside", "-o", "python_files=check_*.py", INSIDE)
    assert " passed" in output


def test_two_devices(run_on_npu, tmp_path):
    write(tmp_path)
    output = run_on_npu(*TORCHRUN, "tests.npu.inside.two_processes", tmp_path)
    both = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert [results["where"] for results in both] == [["hccl", "npu:0"], ["hccl", "npu:1"]]
    assert [results["others"] for results in both] == [[1], [0]]
    check_that_two_train_as_one(both)
    check_that_the_command_wrote_once(tmp_path / "run", output)


def check_that_two_train_as_one(both):
    for name in ("global", "per_device", "fused"):
        assert_same(both[0][name][1], both[1][name][1])
    for name in ("global", "fused"):
        for metrics, of_one in zip(both[0][name][0], both[0]["whole"][0]):
            assert_same(metrics, of_one, 1e-4)
    # In the first step both players have their initial weights, so every logged mean is one of two lone runs.
    alone = [results["alone"][0][0] for results in both]
    for name, value in both[0]["per_device"][0][0].items():
        if not name.endswith("grad_norm"):
            torch.testing.assert_close(value, (alone[0][name] + alone[1][name]) / 2, rtol=1e-4, atol=1e-5)


def check_that_the_command_wrote_once(workdir, output):
    assert output.count("2 process(es) on npu:0") == 1
    assert "process(es) on npu:1" not in output, "only the first process speaks"
    steps = steps_in(workdir / "checkpoints")
    assert set(steps) == {2}
    assert read_meta(steps[2]).metrics["psnr"] > 5
