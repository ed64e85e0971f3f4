"""One JAX process for all tests: 8 simulated CPU devices and a compilation cache that outlives the run."""

from pathlib import Path

import hypothesis
import jax
import pytest

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).parent / "golden"

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)

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
