"""Imports go one way: between the packages, and between the layers of a framework package."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("voken_common", "voken_jax", "voken_torch")
JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "clu", "chex"}
TORCH = {"torch", "torch_npu", "torchvision", "torchmetrics"}
FORBIDDEN = {
    "voken_common": JAX | TORCH | {"voken_jax", "voken_torch"},
    "voken_jax": TORCH | {"voken_torch"},
    "voken_torch": JAX | {"voken_jax"},
}
# A layer may import itself and lower ones. What is not listed (commands, and what only they use) may import everything
# and be imported by nothing that is listed: a new module of the core takes its place here.
LAYERS = (
    {"quantizers", "losses", "kernels", "npu_optimizer"},
    {"sharding", "device"},
    {"optim", "code_usage"},
    {"models"},
    {"quantization"},
    {"state"},
    {"tokenizer_step", "generator_step"},
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
COMMAND = len(LAYERS)
# Grain loads JAX by itself where JAX is installed. The modules that need it at import are themselves imported inside
# the functions that read data, so that no other module brings it along.
LOADS_GRAIN = {
    f"voken_common.data.{name}" for name in ("order", "pipeline", "tokens.pipeline", "generator_data", "tokens.encode")
}
# A converter between the frameworks has to know both; this one module of it does, and only inside its functions, which
# `test_importing_loads_no_foreign_framework` holds it to.
BRIDGES = {"voken_jax.conversion.torch_bridge": {"torch", "voken_torch"}}
# Quantizers and losses know arrays: not even the configuration.
ARRAYS_ONLY = {"quantizers", "losses"}


def module_name(path, root):
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name, root):
    path = root.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def imports_of(path, root):
    """(line, full module name) of every import in a file, also inside functions and by importlib."""
    package = ".".join(path.relative_to(root).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield node.lineno, full if is_module(full, root) else base
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


def problem(importer, imported):
    """What is wrong with a module importing another, or None."""
    package, _, inner = importer.partition(".")
    target, _, target_inner = imported.partition(".")
    if target in FORBIDDEN[package] - BRIDGES.get(importer, set()):
        return f"{package} must not import {target}"
    top = inner.split(".")[0]
    if package == "voken_common" or target not in PACKAGES:
        return None
    if top in ARRAYS_ONLY and target != package:
        return f"{top} knows arrays only"
    if target != package:
        return None
    target_top = target_inner.split(".")[0]
    rank, target_rank = RANK.get(top, COMMAND), RANK.get(target_top, COMMAND)
    if target_top == top or rank == COMMAND or target_rank < rank:
        return None
    return (
        f"{top} must not import {target_top or package}; the order is {' < '.join('/'.join(sorted(x)) for x in LAYERS)}"
    )


def problems(root):
    found = []
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            importer = module_name(path, root)
            for line, imported in imports_of(path, root):
                if trouble := problem(importer, imported):
                    found.append(f"{path.relative_to(root)}:{line}: imports {imported}: {trouble}")
    return found


def test_imports_go_one_way():
    found = problems(ROOT)
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("voken_common/a.py", "import jax.numpy as jnp", "voken_common must not import jax"),
        ("voken_common/a.py", "def f():\n    from torch import nn", "voken_common must not import torch"),
        ("voken_common/a.py", "import importlib\nimportlib.import_module('flax')", "must not import flax"),
        ("voken_common/a.py", "from voken_jax import losses", "must not import voken_jax"),
        ("voken_jax/train.py", "import torch", "voken_jax must not import torch"),
        ("voken_jax/conversion.py", "import torch", "voken_jax must not import torch"),
        ("voken_torch/train.py", "from voken_jax.tokenizer.losses import hinge", "must not import voken_jax"),
        ("voken_torch/train.py", "import jax", "voken_torch must not import jax"),
        ("voken_jax/tokenizer/losses.py", "from voken_jax.quantizers import lfq", "losses must not import quantizers"),
        (
            "voken_jax/tokenizer/losses.py",
            "from voken_common.config.tokenizer import Config",
            "losses knows arrays only",
        ),
        ("voken_jax/quantizers/lfq.py", "from voken_jax import models", "quantizers must not import models"),
        ("voken_jax/quantizers/lfq.py", "from .. import models", "quantizers must not import models"),
        ("voken_jax/quantizers/lfq.py", "from ..models import layers", "quantizers must not import models"),
        ("voken_jax/models/a.py", "from voken_jax.tokenizer.state import TrainState", "models must not import state"),
        ("voken_jax/tokenizer/state.py", "import voken_jax.tokenizer.step", "state must not import tokenizer_step"),
        ("voken_jax/tokenizer/state.py", "from voken_jax.train import main", "state must not import train"),
        ("voken_jax/tokenizer/step.py", "from voken_jax import Tokenizer", "must not import voken_jax"),
    ],
)
def test_a_breach_is_found(tmp_path, path, source, expected):
    for package in PACKAGES:
        for folder in ("models", "quantizers"):
            (tmp_path / package / folder).mkdir(parents=True)
    (tmp_path / path).write_text(source)
    assert len(problems(tmp_path)) == 1
    assert expected in problems(tmp_path)[0]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("voken_common/a.py", "import jaxtyping, numpy\nfrom voken_common import b"),
        ("voken_jax/models/a.py", "from voken_jax.quantizers import lfq\nfrom . import layers\nimport voken_common.b"),
        ("voken_jax/tokenizer/state.py", "from voken_jax.models.a import Network\nfrom .losses import Averages"),
        ("voken_jax/train.py", "from voken_jax import checkpoint, tokenizer_step\nfrom voken_jax.evaluate import main"),
        ("voken_torch/train.py", "import torch\nfrom voken_torch.tokenizer.state import TrainState"),
    ],
)
def test_the_allowed_direction_passes(tmp_path, path, source):
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(source)
    assert problems(tmp_path) == []


def modules(package):
    return sorted({module_name(path, ROOT) for path in (ROOT / package).rglob("*.py")} - LOADS_GRAIN)


@pytest.mark.parametrize("package", [package for package in PACKAGES if modules(package)])
def test_importing_loads_no_foreign_framework(package):
    """All modules of a package in a fresh interpreter; what they import must not bring the other framework either."""
    code = (
        "import importlib, sys\n"
        "forbidden = set(sys.argv[1].split(','))\n"
        "for name in sys.argv[2:]:\n"
        "    importlib.import_module(name)\n"
        "    loaded = forbidden & set(sys.modules)\n"
        "    assert not loaded, f'importing {name} loads {sorted(loaded)}'\n"
    )
    command = [sys.executable, "-c", code, ",".join(FORBIDDEN[package]), *modules(package)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr
