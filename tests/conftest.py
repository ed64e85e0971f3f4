"""One JAX process for all tests: 8 simulated CPU devices and a compilation cache that outlives the run."""

import os
from pathlib import Path

import hypothesis
import jax
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).parent / "golden"

jax.config.update("jax_num_cpu_devices", 8)
# Compiling is most of the tests' time, and what is computed does not depend on how well it is optimised.
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)

# Parallel workers that each start a thread per core only wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)

# The first call of a property compiles, which no deadline per example allows for; runs repeat exactly.
hypothesis.settings.register_profile("voken", deadline=None, derandomize=True)
hypothesis.settings.load_profile("voken")


def pytest_addoption(parser):
    parser.addoption("--golden", default=str(GOLDEN), help="folder of golden cases for tests/parity")


@pytest.fixture
def x64():
    """Compute in 64 bits."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def optimized():
    """Programs as users compile them, for tests that look at the program itself."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="module")
def one_torch_thread():
    """For modules whose tensors are so small that several threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
