"""Reading golden cases: the recipe of inputs and weights, and comparisons at the stated tolerances."""

import functools
import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from voken_common.checkpoints import weight_names as names

FORWARD_FLOAT32, GRADIENT_FLOAT32 = 2e-5, 1e-4
STORED_FLOAT32, EXACT = 1e-6, 1e-8
ZERO = 1e-12


def splitmix(count, seed):
    """`count` numbers in [0, 1) from integer arithmetic."""
    with np.errstate(over="ignore"):
        z = np.arange(1, count + 1, dtype=np.uint64) + np.uint64(seed) * np.uint64(1_000_003)
        z = z * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53


def uniform(shape, seed, name):
    """Mean 0, variance 1, the same on every machine."""
    stream = (zlib.crc32(name.encode()) + 7919 * seed) & 0xFFFFFFFF
    count = int(np.prod(shape))
    return ((2 * splitmix(count, stream) - 1) * np.sqrt(3.0)).reshape(shape)


def weight(key, shape, seed):
    """The weight that a torch state-dict key has in the golden cases."""
    values, leaf = uniform(tuple(shape), seed, key), key.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if leaf == "running_var":
        return 1 + 0.1 * np.abs(values)
    if leaf == "running_mean":
        return 0.1 * values
    if len(shape) >= 2:
        return values / np.sqrt(np.prod(shape[1:]))
    return 1 + 0.1 * values if leaf == "weight" else 0.1 * values


def torch_shape(path, shape):
    """Torch's shape of the JAX weight `path`."""
    return names.to_torch_layout(path, np.empty(shape, np.int8)).shape


def weights_for(shapes, seed, prefix="", dtype=np.float64, rule=weight):
    """Recipe weights for a dictionary {JAX path: something with a shape}, in JAX layout."""
    result = {}
    for path, leaf in shapes.items():
        key = prefix + names.to_torch_name(path)
        array = rule(key, torch_shape(path, leaf.shape), seed)
        array = np.asarray(names.to_jax_layout(path, array))
        result[path] = array.astype(dtype) if array.dtype.kind == "f" else array
    return result


def channels_last(array):
    """(B, C, *S) to (B, *S, C)."""
    return np.moveaxis(np.asarray(array), 1, -1)


def channels_first(array):
    """(B, *S, C) to (B, C, *S)."""
    return np.moveaxis(np.asarray(array), -1, 1)


@dataclass(frozen=True)
class Case:
    """One golden case."""

    name: str
    config: dict
    path: Path

    @property
    def kind(self):
        return self.config["kind"]

    @property
    def seed(self):
        return self.config.get("seed")

    @functools.cached_property
    def arrays(self):
        file = self.path.with_suffix(".npz")
        if not file.exists():
            return {}
        with np.load(file) as stored:
            return {key: stored[key] for key in stored}

    def input(self, dtype=np.float64):
        """The case's input as the reference saw it (channels first)."""
        spec = self.config["input"]
        return (uniform(spec["shape"], self.seed, spec["name"]) * spec["scale"]).astype(dtype)


def load_cases(folder):
    """Every case of a folder, by name."""
    paths = sorted(Path(folder).glob("*.json"))
    if not paths:
        raise FileNotFoundError(f"no golden cases (*.json) in {folder}")
    return {path.stem: Case(path.stem, json.loads(path.read_text()), path) for path in paths}


def assert_close(actual, expected, what, float32=None):
    """Compare with a golden value; `float32` is the tolerance of a float32 run, None means float64.

    Tolerances are relative to the largest magnitude.
    """
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    if expected.dtype.kind in "iub":
        np.testing.assert_array_equal(actual, expected, err_msg=what)
        return
    tolerance = float32 or (STORED_FLOAT32 if expected.dtype == np.float32 else EXACT)
    scale = float(np.abs(expected).max()) if expected.size else 0.0
    error = float(np.abs(actual.astype(np.float64) - expected.astype(np.float64)).max()) if expected.size else 0.0
    assert error <= tolerance * scale + ZERO, f"{what}: off by {error:.3e}, allowed {tolerance * scale + ZERO:.3e}"


def assert_numbers(actual, expected, what, tolerance=EXACT, zero=ZERO):
    """Compare dictionaries {name: number} from a JSON file; names must agree."""
    assert set(actual) == set(expected), f"{what}: {sorted(set(actual) ^ set(expected))} are on one side only"
    for name, value in expected.items():
        error, allowed = abs(float(actual[name]) - value), tolerance * abs(value) + zero
        assert error <= allowed, f"{what} {name}: {float(actual[name])!r}, expected {value!r} (off by {error:.3e})"
