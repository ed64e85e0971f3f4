"""Stands where torch_npu stands on an Ascend machine: the same names over a simulated device.

With this folder's parent on PYTHONPATH and SIMULATED_NPU naming the compiled library (tests/npu/build.py), commands
run unchanged. PyTorch's registration of a device is for the whole process, so tests only ever do this in others.
"""

import os
import sys

import torch

torch.ops.load_library(os.environ["SIMULATED_NPU"])

from torch_npu import hccl, npu, optim  # noqa: E402
from torch_npu.kernels import npu_fusion_attention, npu_rms_norm, npu_rotary_mul, npu_swiglu  # noqa: E402

__all__ = ["hccl", "npu", "npu_fusion_attention", "npu_rms_norm", "npu_rotary_mul", "npu_swiglu", "optim"]

torch.utils.rename_privateuse1_backend("npu")
torch._register_device_module("npu", npu)
sys.modules["torch.npu"] = npu
torch.utils.generate_methods_for_privateuse1_backend()
hccl.register()
