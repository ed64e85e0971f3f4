"""The weights of LPIPS v0.1 as arrays, from the two files that its projects publish or from a published checkpoint.

R. Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", 2018. A network of
torchvision (VGG16 or AlexNet, convolutions only) in five slices, one 1x1 head per slice, and a fixed normalisation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from voken_common.checkpoints.downloads import WEIGHTS, WeightsError, resolve
from voken_common.checkpoints.torch_pickle import load, load_state_dict
from voken_common.errors import CheckpointError

Net = Literal["vgg", "alex"]

SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
PREFIX = "loss.perceptual_loss."
"""Under which published tokenizer checkpoints carry these weights."""

# (slice, index in torchvision's `features`, output channels, input channels, kernel side)
_Conv = tuple[int, int, int, int, int]
_CONVS: dict[Net, tuple[_Conv, ...]] = {
    "vgg": (
        *((1, 0, 64, 3, 3), (1, 2, 64, 64, 3)),
        *((2, 5, 128, 64, 3), (2, 7, 128, 128, 3)),
        *((3, 10, 256, 128, 3), (3, 12, 256, 256, 3), (3, 14, 256, 256, 3)),
        *((4, 17, 512, 256, 3), (4, 19, 512, 512, 3), (4, 21, 512, 512, 3)),
        *((5, 24, 512, 512, 3), (5, 26, 512, 512, 3), (5, 28, 512, 512, 3)),
    ),
    "alex": ((1, 0, 64, 3, 11), (2, 3, 192, 64, 5), (3, 6, 384, 192, 3), (4, 8, 256, 384, 3), (5, 10, 256, 256, 3)),
}
POOL: dict[Net, int] = {"vgg": 2, "alex": 3}
"""Side of the max pools between slices, stride 2: before every slice but the first of VGG16, before the second and the
third of AlexNet."""
POOLED: dict[Net, tuple[int, ...]] = {"vgg": (2, 3, 4, 5), "alex": (2, 3)}
_BACKBONE: dict[Net, str] = {"vgg": "vgg16", "alex": "alexnet"}


def slices(net: Net) -> dict[int, list[tuple[int, int, int, int, int]]]:
    """The convolutions of every slice: (index in torchvision's `features`, inputs, outputs, kernel side, stride)."""
    found: dict[int, list[tuple[int, int, int, int, int]]] = {}
    for part, index, width, channels, side in _CONVS[net]:
        found.setdefault(part, []).append((index, channels, width, side, 4 if side == 11 else 1))
    return found


def lpips_shapes(net: Net = "vgg") -> dict[str, tuple[int, ...]]:
    """Every LPIPS weight under its torch key, with its shape in torch's layout (out, in, height, width)."""
    shapes: dict[str, tuple[int, ...]] = {"scaling_layer.shift": (1, 3, 1, 1), "scaling_layer.scale": (1, 3, 1, 1)}
    widths = {}
    for part, index, width, channels, side in _CONVS[net]:
        shapes[f"net.slice{part}.{index}.weight"] = (width, channels, side, side)
        shapes[f"net.slice{part}.{index}.bias"] = (width,)
        widths[part] = width
    return shapes | {f"lin{part - 1}.model.1.weight": (1, width, 1, 1) for part, width in widths.items()}


def lpips_weights(
    net: Net, setting: str | Path = "auto", *, cache_dir: str | Path | None = None, progress: bool = True
) -> dict[str, np.ndarray]:
    """LPIPS v0.1 under the reference's keys, in torch's layout.

    Args:
        net: "vgg" (training and evaluation) or "alex" (evaluation).
        setting: "auto" takes both files from the cache or downloads and verifies them; a folder is one that holds both
            under their published names; a file is a torch checkpoint with all the keys, bare or under `PREFIX`.
        cache_dir, progress: as for `weights.resolve`.

    Returns:
        {key: float32 array}, exactly the keys and shapes of `lpips_shapes(net)`.

    Raises:
        WeightsError: a file is missing, not to be had, or not what it should be.
    """
    path = Path(setting).expanduser()
    if setting == "auto":
        backbone = resolve(_BACKBONE[net], cache_dir=cache_dir, progress=progress)
        heads = resolve(f"lpips_{net}", cache_dir=cache_dir, progress=progress)
    elif path.is_file():
        return _checked(net, _read_whole(path), path)
    else:
        backbone, heads = _in_folder(path, _BACKBONE[net]), _in_folder(path, f"lpips_{net}")
    features, linear = _read(backbone), _read(heads)
    found = {
        "scaling_layer.shift": np.asarray(SHIFT, np.float32).reshape(1, 3, 1, 1),
        "scaling_layer.scale": np.asarray(SCALE, np.float32).reshape(1, 3, 1, 1),
    }
    for part, index, *_ in _CONVS[net]:
        for leaf in ("weight", "bias"):
            if f"features.{index}.{leaf}" in features:
                found[f"net.slice{part}.{index}.{leaf}"] = features[f"features.{index}.{leaf}"]
    return _checked(net, found | linear, f"{backbone} with {heads}")


def lpips_vgg_weights(
    setting: str | Path = "auto", *, cache_dir: str | Path | None = None, progress: bool = True
) -> dict[str, np.ndarray]:
    """LPIPS with VGG16, the perceptual loss of training: `lpips_weights("vgg", ...)`."""
    return lpips_weights("vgg", setting, cache_dir=cache_dir, progress=progress)


def _in_folder(folder: Path, name: str) -> Path:
    """A published file in a user's folder, flat or in the sub-folder it is published in."""
    weight = WEIGHTS[name]
    for candidate in (folder / weight.relative, folder / weight.name):
        if candidate.is_file():
            return candidate
    checksum = f"sha256 {weight.sha256}"
    raise WeightsError(
        f"no {weight.name} in {folder}; expected it from {weight.source} ({checksum}). "
        "perceptual.weights takes none, auto, a folder with both files, or a checkpoint that carries LPIPS"
    )


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        return load_state_dict(path, key=None)
    except CheckpointError as error:
        raise WeightsError(f"{error}. Expected the file of weights as published") from error


def _read_whole(path: Path) -> dict[str, np.ndarray]:
    """All LPIPS weights out of one checkpoint; its other contents are never looked at."""
    try:
        root = load(path, unknown="inert")
    except CheckpointError as error:
        raise WeightsError(f"{error}. Expected a checkpoint that carries LPIPS weights") from error
    state = root.get("state_dict", root) if isinstance(root, dict) else {}
    prefix = PREFIX if any(str(key).startswith(PREFIX) for key in state) else ""
    return {key.removeprefix(prefix): state[key] for key in state if isinstance(key, str) and key.startswith(prefix)}


def _checked(net: Net, found: dict[str, np.ndarray], origin: str | Path) -> dict[str, np.ndarray]:
    """Exactly the expected keys, each in its shape, as float32."""
    shapes = lpips_shapes(net)
    if missing := [key for key in shapes if key not in found]:
        raise WeightsError(
            f"{origin}: {len(missing)} of {len(shapes)} LPIPS {net} weights are missing, the first {missing[0]}; "
            f"found {', '.join(map(str, list(found)[:4])) or 'none'}"
        )
    for key, shape in shapes.items():
        if np.shape(found[key]) != shape:
            raise WeightsError(f"{origin}: {key} has shape {np.shape(found[key])}, expected {shape} for LPIPS {net}")
    return {key: np.asarray(found[key], np.float32) for key in shapes}
