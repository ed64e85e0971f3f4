"""Compile the simulated device once per version of PyTorch and of its sources; used by tests/npu/conftest.py."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

SOURCES = Path(__file__).parent / "csrc"
CACHE = Path(__file__).resolve().parents[2] / ".cache" / "npu_sim"


def compiler() -> str | None:
    """The C++ compiler: that of CXX, else g++."""
    return shutil.which(os.environ.get("CXX", "g++"))


def build() -> Path:
    """The shared library, compiled unless it is there; other processes that ask meanwhile wait (about 10 s)."""
    import torch
    from filelock import FileLock

    digest = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(SOURCES.iterdir()))).hexdigest()
    folder = CACHE / f"{torch.__version__}-{digest[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "npu.so"
    with FileLock(folder / "lock"):
        if not library.exists():
            _compile(Path(torch.__file__).parent, library, cxx11_abi=torch.compiled_with_cxx11_abi())
    return library


def _compile(torch: Path, library: Path, cxx11_abi: bool) -> None:
    unfinished = library.with_suffix(".unfinished")
    # A plain call, as cpp_extension.load would also load the library into this process. Optimising would take longer
    # than it saves.
    command = [compiler(), SOURCES / "npu.cpp", "-o", unfinished, "-shared", "-fPIC", "-std=c++20", "-O0", "-w"]
    command += [f"-D_GLIBCXX_USE_CXX11_ABI={int(cxx11_abi)}", f"-I{torch / 'include'}"]
    command += [f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the simulated NPU does not compile:\n{done.stderr}")
    unfinished.rename(library)
