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
# The rooms of each package, from the ground up: a room may import those below it, and those of its own floor as long as
# that makes no circle. A new room, or a file loose at a package's root, gets its floor here. "" is the package's face.
FLOORS = {
    "voken_common": (
        {"untrusted"},
        {"errors", "causes", "pixels", "atomic_write", "processes"},
        {"config"},
        {"published"},
        {"metrics", "visual"},
        {"data"},
        {"checkpoints"},
        {"training", "evaluation", "sampling", "api", "quickstart"},
        {"commands", ""},
    ),
    "voken_jax": (
        {"quantizers", "parallel"},
        {"models"},
        {"checkpoints"},
        {"optimization", "evaluation"},
        {"tokenizer"},
        {"generator"},
        {"training"},
        {"conversion", "dry_run", "export"},
        {"train", "reconstruct", "encode", "sample", "evaluate", "inflate", "convert", "push", ""},
    ),
    "voken_torch": (
        {"device"},
        {"quantizers", "parallel"},
        {"models"},
        {"checkpoints"},
        {"optimization", "evaluation"},
        {"tokenizer"},
        {"generator"},
        {"training"},
        {"conversion", "export"},
        {"train", "reconstruct", "encode", "sample", "evaluate", "inflate", "convert", "push", ""},
    ),
}
FLOOR = {package: {room: i for i, rooms in enumerate(floors) for room in rooms} for package, floors in FLOORS.items()}
# Grain loads JAX by itself where JAX is installed. The modules that need it at import are themselves imported inside
# the functions that read data, so that no other module brings it along.
LOADS_GRAIN = {
    f"voken_common.data.{name}" for name in ("order", "pipeline", "tokens.pipeline", "generator_data", "tokens.encode")
}
# A converter between the frameworks has to know both; this one module of it does, and only inside its functions, which
# `test_importing_loads_no_foreign_framework` holds it to.
BRIDGES = {"voken_jax.conversion.torch_bridge": {"torch", "voken_torch"}}
# Quantizers and losses know arrays: not even the configuration.
ARRAYS_ONLY = ("quantizers", "tokenizer.losses")
# The table of quantizers is what knows both the configuration and the functions.
KNOWS_CONFIG = "quantizers.configured"


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


def room_of(inner):
    """The room of a module by its name inside the package; "" is the package itself."""
    return inner.split(".")[0]


def knows_arrays_only(inner):
    return inner != KNOWS_CONFIG and any(inner == name or inner.startswith(f"{name}.") for name in ARRAYS_ONLY)


def problem(importer, imported):
    """The rule that one module breaks by importing another, or None."""
    package, _, inner = importer.partition(".")
    target, _, target_inner = imported.partition(".")
    if target in FORBIDDEN[package] - BRIDGES.get(importer, set()):
        return f"{package} must not import {target}"
    if target == "voken_common" != package and knows_arrays_only(inner):
        return f"{inner} knows arrays only"
    if target != package:
        return None
    room, other = room_of(inner), room_of(target_inner)
    floors = FLOOR[package]
    for name in (room, other):
        if name not in floors:
            return f"room {name!r} of {package} has no floor: name it in FLOORS of tests/unit/test_import_rules.py"
    if floors[other] > floors[room] or (other == "" and room != ""):
        order = " < ".join("/".join(sorted(rooms - {""})) for rooms in FLOORS[package])
        return f"{room} must not import {other or package}; the floors of {package}: {order}"
    return None


def circles(edges):
    """Groups of names that import each other in a circle, from pairs (importer, imported)."""
    targets = {}
    for importer, imported in edges:
        targets.setdefault(importer, set()).add(imported)

    def reachable(start):
        found, todo = set(), [start]
        while todo:
            for name in targets.get(todo.pop(), set()) - found:
                found.add(name)
                todo.append(name)
        return found

    reach = {name: reachable(name) for name in targets}
    groups = {frozenset(b for b in reach[a] if a in reach.get(b, set())) for a in targets if a in reach[a]}
    return sorted(sorted(group) for group in groups)


def problems(root):
    found, edges = [], set()
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            importer = module_name(path, root)
            room = room_of(importer.partition(".")[2])
            if room not in FLOOR[package]:
                found.append(f"{path.relative_to(root)}: room {room!r} of {package} has no floor: name it in FLOORS")
            for line, imported in imports_of(path, root):
                if trouble := problem(importer, imported):
                    found.append(f"{path.relative_to(root)}:{line}: imports {imported}: {trouble}")
                if imported.partition(".")[0] in PACKAGES and imported != importer:
                    edges.add((importer, imported))
    found += [f"circle of files: {', '.join(group)}" for group in circles(edges)]
    rooms = {tuple(".".join(name.split(".")[:2]) for name in edge) for edge in edges}
    found += [f"circle of rooms: {', '.join(group)}" for group in circles({e for e in rooms if e[0] != e[1]})]
    return found


def test_imports_go_one_way():
    found = problems(ROOT)
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("voken_common/errors.py", "import jax.numpy as jnp", "voken_common must not import jax"),
        ("voken_common/errors.py", "def f():\n    from torch import nn", "voken_common must not import torch"),
        ("voken_common/errors.py", "import importlib\nimportlib.import_module('flax')", "must not import flax"),
        ("voken_common/errors.py", "from voken_jax import losses", "must not import voken_jax"),
        (
            "voken_common/config/schema/data.py",
            "from voken_common.data.images import MAX",
            "config must not import data",
        ),
        ("voken_common/config/schema/data.py", "def f():\n    import voken_common.data", "config must not import data"),
        ("voken_common/checkpoints/a.py", "from voken_common.training import loop", "must not import training"),
        ("voken_common/sampling/a.py", "from voken_common.commands.sample import main", "must not import commands"),
        ("voken_common/news/a.py", "import numpy", "room 'news' of voken_common has no floor"),
        ("voken_jax/train.py", "import torch", "voken_jax must not import torch"),
        ("voken_jax/convert.py", "import torch", "voken_jax must not import torch"),
        ("voken_torch/train.py", "from voken_jax.tokenizer.losses import hinge", "must not import voken_jax"),
        ("voken_torch/train.py", "import jax", "voken_torch must not import jax"),
        (
            "voken_jax/tokenizer/losses.py",
            "from voken_common.config.loading import AnyConfig",
            "knows arrays only",
        ),
        ("voken_jax/quantizers/lfq.py", "from voken_common.errors import E", "quantizers.lfq knows arrays only"),
        ("voken_jax/quantizers/lfq.py", "from voken_jax import models", "quantizers must not import models"),
        ("voken_jax/quantizers/lfq.py", "from .. import models", "quantizers must not import models"),
        ("voken_jax/quantizers/lfq.py", "from ..models import layers", "quantizers must not import models"),
        ("voken_jax/models/a.py", "from voken_jax.tokenizer.state import S", "models must not import tokenizer"),
        ("voken_jax/checkpoints/a.py", "from voken_jax.tokenizer.state import S", "must not import tokenizer"),
        ("voken_jax/tokenizer/state.py", "from voken_jax.train import main", "tokenizer must not import train"),
        ("voken_jax/tokenizer/step.py", "from voken_jax import Tokenizer", "must not import voken_jax"),
        ("voken_torch/device/a.py", "from voken_torch.quantizers import lfq", "device must not import quantizers"),
    ],
)
def test_a_breach_is_found(tmp_path, path, source, expected):
    for package in PACKAGES:
        for folder in ("models", "quantizers"):
            (tmp_path / package / folder).mkdir(parents=True)
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text(source)
    assert len(problems(tmp_path)) == 1
    assert expected in problems(tmp_path)[0]


def test_a_circle_of_files_is_found(tmp_path):
    folder = tmp_path / "voken_common" / "data"
    folder.mkdir(parents=True)
    for name, source in {
        "a": "from voken_common.data.b import x",
        "b": "def f():\n    from voken_common.data import c",
        "c": "from voken_common.data import a",
        "d": "from voken_common.data import a",
    }.items():
        (folder / f"{name}.py").write_text(source)
    assert problems(tmp_path) == ["circle of files: voken_common.data.a, voken_common.data.b, voken_common.data.c"]


def test_a_circle_of_rooms_is_found(tmp_path):
    for room, other in (("training", "sampling"), ("sampling", "training")):
        (tmp_path / "voken_common" / room).mkdir(parents=True)
        (tmp_path / "voken_common" / room / "a.py").write_text("")
        (tmp_path / "voken_common" / room / "b.py").write_text(f"from voken_common.{other} import a")
    assert problems(tmp_path) == ["circle of rooms: voken_common.sampling, voken_common.training"]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("voken_common/data/a.py", "import jaxtyping, numpy\nfrom voken_common.config import data"),
        ("voken_common/training/a.py", "from voken_common.sampling.requests import seed_of"),
        ("voken_jax/models/a.py", "from voken_jax.quantizers import lfq\nfrom . import layers\nimport voken_common.b"),
        ("voken_jax/quantizers/configured.py", "from voken_common.config import tokenizer"),
        ("voken_jax/tokenizer/state.py", "from voken_jax.models.a import Network\nfrom .losses import Averages"),
        ("voken_jax/train.py", "from voken_jax.training import run\nfrom voken_jax.evaluate import main"),
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
