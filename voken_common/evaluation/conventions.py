"""Conventions that decide the numbers of an evaluation, in words."""

from __future__ import annotations

import importlib.metadata
import platform

from voken_common.config.schema.data import DataConfig
from voken_common.evaluation.engine import Engine
from voken_common.evaluation.images.measure import ImageMeasurement
from voken_common.metrics.resize import Resize

_PACKAGES = ("voken", "numpy", "scipy", "pillow")


def versions(engine: Engine) -> str:
    """Versions and device of the computation."""
    found = []
    for package in _PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{package} from source")
    return ", ".join([*found, engine.framework, f"Python {platform.python_version()}"])


def inception(engine: Engine, resize: Resize) -> str:
    """The network of FID and how images come into it."""
    weights = engine.weights.inception()
    kind = "as published" if engine.weights.published_inception else "NOT the published file"
    return f"FID Inception, {_RESIZES[resize]} to 299, sha256 {weights.sha256} ({kind})"


def of_images(data: DataConfig, described: str, measurement: ImageMeasurement) -> dict[str, str]:
    """Data, geometry and colour of an image evaluation."""
    if measurement.original:
        geometry = {
            "size": f"original, padded with grey to multiples of {measurement.multiple}, half on each side, and cropped"
        }
    else:
        crop = {
            "pil": "short side by Pillow, bilinear with antialiasing",
            "cv2": "short side as OpenCV, bilinear without antialiasing",
            "none": "none",
        }[data.resize]
        geometry = {"size": f"{data.image_size}x{data.image_size}, central crop", "resize": crop}
    return {
        "data": described,
        **geometry,
        "colour": f"RGB by Pillow, EXIF rotation {'obeyed' if data.exif_rotate else 'ignored'}",
        "PSNR and SSIM": "of bytes truncated from [-1, 1], scikit-image's definitions, mean over images, PSNR at most "
        "58.92 dB",
    }


_RESIZES: dict[Resize, str] = {
    "half_pixel": "bilinear with half-pixel centres (pytorch-fid)",
    "tensorflow1": "bilinear of TensorFlow 1 (ADM evaluator, torch-fidelity)",
}
