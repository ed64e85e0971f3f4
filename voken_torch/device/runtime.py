"""Ascend NPU, CUDA or CPU: the only module that tells them apart.

Nothing falls back silently: a device that was asked for and cannot be used is an error that says what is missing.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from voken_common.errors import UnavailableError
from voken_torch.device.kernels import PLAIN, Kernels
from voken_torch.device.npu_optimizer import with_usual_manners

DeviceName = Literal["auto", "npu", "cuda", "cpu"]
NAMES: tuple[DeviceName, ...] = ("auto", "npu", "cuda", "cpu")
BACKENDS = {"npu": "hccl", "cuda": "nccl", "cpu": "gloo"}

_NPU_HELP = """Training on Ascend needs three things that fit together:
  1. the driver and CANN (toolkit and kernels), with CANN's set_env.sh sourced in this shell;
  2. torch_npu of torch's own version: `pip install "voken[npu]"` (torch_npu 2.13.0 goes with torch 2.13.0;
     torch_npu 2.12.0 with torch 2.12.0 and CANN 9.1.0);
  3. visible devices: `npu-smi info`, and ASCEND_RT_VISIBLE_DEVICES if it is set.
If `import torch` itself fails over libhccl.so, CANN is missing: source set_env.sh, or uninstall torch_npu."""


class DeviceError(UnavailableError):
    """A device that cannot be used; the message says what was found, what is missing and how to get it."""


@dataclasses.dataclass(frozen=True)
class Runtime:
    """One process's device and how it computes.

    Attributes:
        device: where this process's tensors live.
        fused: use the device's fused kernels (attention, optimizer) instead of the plain computation.
    """

    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))
    fused: bool = False

    def autocast(self, compute_dtype: str) -> AbstractContextManager[Any]:
        """Mixed precision where `compute_dtype` is bfloat16; else the precision of the weights."""
        if compute_dtype == "bfloat16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def check_precision(self, *dtypes: str) -> None:
        """Raise DeviceError where float64 is asked of a device that may compute it as float32."""
        if self.device.type == "npu" and "float64" in dtypes:
            raise DeviceError("precision asks for float64, which an NPU may compute as float32: use --device cpu")

    def adamw(self, split: bool = False) -> Callable[..., torch.optim.Optimizer]:
        """AdamW of this device: (parameters, lr=, betas=, eps=, weight_decay=) -> optimizer.

        Raises:
            DeviceError: the fused one cannot work on parameters that are `split` over processes.
        """
        if not self.fused:
            return torch.optim.AdamW
        if self.device.type == "npu":
            if split:
                raise DeviceError(
                    "--fused: torch_npu's fused AdamW gathers whole weights in one block, and mesh.fsdp splits them: "
                    "leave out --fused, or set mesh.fsdp to 1"
                )
            return with_usual_manners(_torch_npu("optim.NpuFusedAdamW"))
        return lambda parameters, **options: torch.optim.AdamW(parameters, fused=True, **options)

    def attention(self) -> Callable[[Tensor, Tensor, Tensor, float], Tensor] | None:
        """Fused single-head attention of (B, L, C) tensors, or None for the plain computation."""
        if not self.fused:
            return None
        return _npu_attention if self.device.type == "npu" else _sdpa

    def kernels(self) -> Kernels:
        """Kernels of a transformer: an NPU's fused ones, else PyTorch's (whose attention is fused anyway)."""
        return NPU_KERNELS if self.fused and self.device.type == "npu" else PLAIN

    def forked_random_state(self) -> AbstractContextManager[Any]:
        """Leave the random state as it was, on this device and on the CPU."""
        if self.device.type == "cpu":
            return torch.random.fork_rng(devices=[])
        index = self.device.index or 0
        return torch.random.fork_rng(devices=[index], device_type=self.device.type)


def start(name: DeviceName = "auto", *, fused: bool = False) -> Runtime:
    """Take this process's device, and join the other processes where `torchrun` started several.

    Args:
        name: auto takes an NPU, else a CUDA device, else the CPU; an installation of torch_npu that does not work is
            an error for auto too.
        fused: use fused kernels.

    Raises:
        DeviceError: the device cannot be used.
    """
    device = resolve(name, int(os.environ.get("LOCAL_RANK", "0")))
    if device.type != "cpu":
        torch.get_device_module(device).set_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group(BACKENDS[device.type], timeout=timedelta(minutes=30))
    return Runtime(device, fused)


@contextmanager
def session(name: DeviceName = "auto", *, fused: bool = False) -> Iterator[Runtime]:
    """`start`, and leave the other processes when the block ends; see there.

    After an error this process does not wait for the others: `torchrun` ends them.
    """
    runtime = start(name, fused=fused)
    yield runtime
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def launched() -> tuple[int, int, int]:
    """(number of this process, how many there are, its number on this host), as `torchrun` says it; (0, 1, 0) without.

    For processes that have nothing to tell each other: no process group is joined.
    """
    rank, count, local = (
        int(os.environ.get(key, value)) for key, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
    )
    return rank, count, local


def resolve(name: DeviceName, local_index: int = 0) -> torch.device:
    """The torch device of a `--device` option and of a process's number on its machine.

    Raises:
        DeviceError: the device cannot be used.
    """
    if name not in NAMES:
        raise DeviceError(f"device is {name!r}: expected one of {', '.join(NAMES)}")
    if name == "auto":
        name = "npu" if _npu_installed() else "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if name == "npu":
        count = _npu_count()
    else:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise DeviceError(
                f"no CUDA device: torch {torch.__version__} "
                + ("sees none; check nvidia-smi and CUDA_VISIBLE_DEVICES" if torch.version.cuda else "has no CUDA")
                + "; install a CUDA build of torch, or use --device cpu"
            )
    if local_index >= count:
        raise DeviceError(
            f"process {local_index} of this machine has no {name} device: {count} visible; start at most that many "
            "processes (torchrun --nproc-per-node)"
        )
    return torch.device(name, local_index)


def set_numerics(device: torch.device, *, full_precision: bool, deterministic: bool) -> None:
    """Switches for runs that are compared with others: no shortened float32 (TF32, HF32), and repeatable results.

    Environment variables set here act on libraries that start later: call it first.
    """
    if full_precision:
        torch.set_float32_matmul_precision("highest")
        if device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = False
        if device.type == "npu":
            for operation in ("conv", "matmul"):
                switches = getattr(torch.get_device_module(device), operation, None)
                if switches is not None:
                    switches.allow_hf32 = False
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        os.environ.setdefault("HCCL_DETERMINISTIC", "true")
        torch.use_deterministic_algorithms(True)


def _npu_installed() -> bool:
    return hasattr(torch, "npu") or importlib.util.find_spec("torch_npu") is not None


def _npu_count() -> int:
    """Number of NPUs, at least one, with their backend loaded."""
    if not hasattr(torch, "npu"):
        if importlib.util.find_spec("torch_npu") is None:
            raise DeviceError(f"no NPU: torch_npu is not installed (torch is {torch.__version__}).\n{_NPU_HELP}")
        try:
            importlib.import_module("torch_npu")
        except (ImportError, OSError, RuntimeError) as error:
            raise DeviceError(f"no NPU: torch_npu does not load: {error}\n{_NPU_HELP}") from error
    module: Any = torch.get_device_module("npu")
    if not module.is_available() or module.device_count() == 0:
        raise DeviceError(f"no NPU: torch_npu is loaded but sees no device.\n{_NPU_HELP}")
    return int(module.device_count())


def _torch_npu(name: str) -> Any:
    try:
        found: Any = importlib.import_module("torch_npu")
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise DeviceError(
            f"torch_npu.{name} is not there ({error}): run without fused kernels.\n{_NPU_HELP}"
        ) from error
    return found


def _npu_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    fused = _torch_npu("npu_fusion_attention")
    result: Tensor = fused(q, k, v, head_num=1, input_layout="BSH", scale=scale)[0]
    return result


def _npu_causal(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, causal: bool) -> Tensor:
    hidden = None if visible is None else ~visible
    if causal:
        hidden = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
    fused, scale = _torch_npu("npu_fusion_attention"), q.shape[-1] ** -0.5
    result: Tensor = fused(q, k, v, head_num=q.shape[1], input_layout="BNSD", atten_mask=hidden, scale=scale)[0]
    return result


def _npu_rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    parts = (part.repeat_interleave(2, dim=-1)[None, None].to(x.dtype) for part in (cosine, sine))
    result: Tensor = _torch_npu("npu_rotary_mul")(x, *parts, rotary_mode="interleave")
    return result


def _npu_rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    result: Tensor = _torch_npu("npu_rms_norm")(x, weight.to(x.dtype), epsilon=epsilon)[0]
    return result


def _npu_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    result: Tensor = _torch_npu("npu_swiglu")(torch.cat([gate, up], dim=-1), dim=-1)
    return result


NPU_KERNELS = Kernels(_npu_causal, _npu_rotate, _npu_rms_norm, _npu_swiglu)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], scale=scale)[:, 0]
