"""Codes that several PyTorch processes have used are counted once."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from voken_common.training.collapse import CodeUse
from voken_torch.optimization.codebook_usage import SeenCodes


def count(index, store):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=index, world_size=2)
    codes = SeenCodes(10, torch.device("cpu"))
    codes.see([torch.tensor([3, index, index])])
    assert codes.take() == CodeUse(3, 10, 6)
    assert codes.take() == CodeUse(0, 10, 0)
    dist.destroy_process_group()


@pytest.mark.slow
def test_codes_of_all_processes_are_counted_once(tmp_path):
    mp.spawn(count, (tmp_path / "store",), nprocs=2)
