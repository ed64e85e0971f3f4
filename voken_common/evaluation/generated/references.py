"""Statistics of reference sets: read from other projects' files, computed once, kept, shared.

A file of statistics is an .npz with `mu` and `sigma` of pool_3 features, which pytorch-fid writes and reads; ours also
hold `mu_s` and `sigma_s` (sFID) as the ADM evaluator's reference batches do, `count`, and `about`, a JSON line of
conventions that other programs pass over.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from voken_common.atomic_write import replacing
from voken_common.errors import UserError
from voken_common.metrics import Moments
from voken_common.untrusted.archives import require_modest

_PAIRS = {"fid": ("mu", "sigma"), "sfid": ("mu_s", "sigma_s")}
_FEATURES = {"fid": 2048, "sfid": 2023}


@dataclass(frozen=True)
class ReferenceStatistics:
    """Gaussians of a reference set.

    Attributes:
        fid, sfid: of pool_3 and of spatial features; None where the file has none.
        count: samples behind them; None where the file does not say.
        about: conventions under which they were computed; empty where the file does not say.
    """

    fid: Moments | None
    sfid: Moments | None = None
    count: int | None = None
    about: dict[str, Any] | None = None


def read_statistics(path: str | Path) -> ReferenceStatistics | None:
    """The statistics in an .npz; None where it holds none (a file of samples).

    Raises:
        UserError: not an .npz, or arrays that are not statistics of FID's features.
    """
    with open_npz(path) as data:
        names = set(data.files)
        moments = {kind: _moments(path, data, kind) for kind, pair in _PAIRS.items() if set(pair) <= names}
        if not moments:
            if names & {"mu", "sigma", "mu_s", "sigma_s"}:
                raise UserError(f"{path} holds {', '.join(sorted(names))}; expected mu and sigma together")
            return None
        about = json.loads(str(data["about"])) if "about" in names else None
        count = int(data["count"]) if "count" in names else None
    return ReferenceStatistics(moments.get("fid"), moments.get("sfid"), count, about)


def write_statistics(path: str | Path, statistics: ReferenceStatistics) -> None:
    """Write a file that pytorch-fid reads as well."""
    arrays: dict[str, Any] = {"about": json.dumps(statistics.about or {}, sort_keys=True)}
    if statistics.count is not None:
        arrays["count"] = statistics.count
    for kind, moments in (("fid", statistics.fid), ("sfid", statistics.sfid)):
        if moments is not None:
            arrays |= dict(zip(_PAIRS[kind], moments, strict=True))
    with replacing(path) as file:
        np.savez(file, **arrays)


def open_npz(path: str | Path) -> Any:
    """An .npz without pickles, to be closed.

    Raises:
        UserError: missing, or not an .npz.
    """
    try:
        require_modest(path)
        data = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"no file {path}") from error
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{path} is not an .npz file ({error})") from error
    if not hasattr(data, "files"):
        raise UserError(f"{path} is a single array (.npy); expected an .npz with named arrays")
    return data


def _moments(path: str | Path, data: Any, kind: str) -> Moments:
    mean_name, covariance_name = _PAIRS[kind]
    mean, covariance = data[mean_name], data[covariance_name]
    width = _FEATURES[kind]
    if mean.shape != (width,) or covariance.shape != (width, width):
        raise UserError(
            f"{path}: {mean_name} {mean.shape} and {covariance_name} {covariance.shape}; expected ({width},) and "
            f"({width}, {width}), statistics of FID's Inception"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"{path}: {mean_name} or {covariance_name} holds NaN or infinite values")
    return Moments(mean.astype(np.float64), covariance.astype(np.float64))
