"""The weights of the feature networks as arrays, from the files that their projects publish."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from voken_common.checkpoints.downloads import WeightsError, resolve
from voken_common.checkpoints.feature_networks.i3d import I3D
from voken_common.checkpoints.feature_networks.inception import INCEPTION
from voken_common.checkpoints.feature_networks.layers import FeatureNetwork
from voken_common.checkpoints.torch_pickle import load_state_dict
from voken_common.errors import CheckpointError

_COUNTER = ".num_batches_tracked"


class FeatureWeights(NamedTuple):
    """Weights that were read, and their file.

    Attributes:
        arrays: {torch key: float32 array}, exactly those of the network.
        sha256: of the file.
        path: of the file.
    """

    arrays: dict[str, np.ndarray]
    sha256: str
    path: Path


def inception_weights(
    setting: str | Path = "auto", *, cache_dir: str | Path | None = None, progress: bool = True
) -> FeatureWeights:
    """FID's Inception.

    Args:
        setting: "auto" takes the published file from the cache or downloads it, verified; else the path of a file,
            which has to hold exactly the network's weights but may be another release: reports name its sha256.
        cache_dir, progress: as for `downloads.resolve`.

    Raises:
        WeightsError: the file is missing, not to be had, or does not hold these weights.
    """
    return _read(INCEPTION, "inception_fid", setting, cache_dir, progress)


def i3d_weights(
    setting: str | Path = "auto", *, cache_dir: str | Path | None = None, progress: bool = True
) -> FeatureWeights:
    """I3D; as `inception_weights`."""
    return _read(I3D, "i3d", setting, cache_dir, progress)


def checked(network: FeatureNetwork, found: dict[str, np.ndarray], origin: str | Path) -> dict[str, np.ndarray]:
    """Exactly the network's keys, each in its shape, as float32; batch counters are left out.

    Raises:
        WeightsError: a key is missing, unexpected, or of another shape.
    """
    found = {key: array for key, array in found.items() if not key.endswith(_COUNTER)}
    shapes = network.shapes()
    missing = [key for key in shapes if key not in found]
    unexpected = [key for key in found if key not in shapes]
    if missing or unexpected:
        raise WeightsError(
            f"{origin} is not a file of {network.name}: {len(missing)} of {len(shapes)} weights are missing"
            f"{f' (the first {missing[0]})' if missing else ''} and {len(unexpected)} are unexpected"
            f"{f' (the first {unexpected[0]})' if unexpected else ''}. Is it another release of the network?"
        )
    for key, shape in shapes.items():
        if np.shape(found[key]) != shape:
            raise WeightsError(
                f"{origin}: {key} has shape {np.shape(found[key])}, expected {shape} for {network.name}. Is it another "
                "release of the network?"
            )
        if not np.isfinite(found[key]).all():
            raise WeightsError(f"{origin}: {key} holds NaN or infinite values; fetch the file again")
    return {key: np.asarray(found[key], np.float32) for key in shapes}


def _read(
    network: FeatureNetwork, name: str, setting: str | Path, cache_dir: str | Path | None, progress: bool
) -> FeatureWeights:
    path = resolve(name if str(setting) == "auto" else setting, cache_dir=cache_dir, progress=progress)
    try:
        found = load_state_dict(path, key=None)
    except CheckpointError as error:
        raise WeightsError(f"{error}. Expected the file of {network.name}'s weights as published") from error
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FeatureWeights(checked(network, found, path), digest, path)
