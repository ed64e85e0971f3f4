"""Inflation: the weights of an image tokenizer as the beginning of a video tokenizer of the same shape.

Every 2-D kernel becomes the last frame of a 3-D kernel that is zero elsewhere, so that at first each frame is seen by
itself. Where an upsampler doubles time, its kernel and bias stand twice in a row: both new frames look like the old
one. Everything else is copied. (Carreira & Zisserman, 2017, as Open-MAGVIT2 does it.)
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from voken_common.checkpoints.weight_names import NameMismatch, require_same_names
from voken_common.config.loading import validate
from voken_common.config.schema.tokenizer import Config
from voken_common.errors import CheckpointError

_CONVOLUTION = ".conv_1."


def inflate(
    image: Mapping[str, np.ndarray], video: Mapping[str, tuple[int, ...]], what: str = "the image tokenizer"
) -> dict[str, np.ndarray]:
    """Make weights of a video tokenizer.

    Args:
        image: torch keys and arrays of encoder and decoder of an image tokenizer, in torch's layout.
        video: torch keys and shapes of encoder and decoder of the video tokenizer.
        what: how errors call the image tokenizer.

    Raises:
        NameMismatch: other levels, widths, blocks or code bits than the video tokenizer has.
    """
    sources = {key: key.replace(_CONVOLUTION, ".") for key in video}
    require_same_names(image, sources.values(), f"inflating {what}")
    result, wrong = {}, []
    for key, shape in video.items():
        source = np.asarray(image[sources[key]])
        made = _inflated(source, tuple(shape))
        if made is None:
            wrong.append(f"  {sources[key]}: found {source.shape}, which does not become {tuple(shape)} of {key}")
        else:
            result[key] = made
    if wrong:
        lines = [f"inflating {what}: {len(wrong)} weight(s) of another shape", *wrong[:20]]
        raise NameMismatch("\n".join([*lines, "the video tokenizer needs the image tokenizer's widths and code bits"]))
    return result


def _inflated(source: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """The array of that shape, or None where there is no such."""
    if source.ndim and shape[0] == 2 * source.shape[0]:
        source = np.concatenate([source, source])
    if source.shape == shape:
        return source.copy()
    if len(shape) != 5 or source.shape != (*shape[:2], *shape[3:]):
        return None
    kernel = np.zeros(shape, source.dtype)
    kernel[:, :, -1] = source
    return kernel


def video_config(image: Config) -> Config:
    """The configuration of the video tokenizer that an image tokenizer inflates into, to be trained on `videos/`.

    Raises:
        CheckpointError: it is no image tokenizer of Open-MAGVIT2's network.
    """
    if image.model.network != "magvit2":
        raise CheckpointError(
            f"{image.name} has network {image.model.network}: only magvit2 has a network for videos (magvit2_video)"
        )
    values = image.model_dump(mode="json")
    layers = values["discriminator"].get("layers", 3)
    values |= {
        "name": f"{image.name}_video",
        "model": values["model"] | {"network": "magvit2_video"},
        "discriminator": {"kind": "patchgan_3d", "layers": layers},
        "data": {
            "train": {"kind": "video_folder", "path": "videos"},
            "image_size": image.data.image_size,
            "resize": "cv2",
        },
    }
    return validate(values, origin=f"the video tokenizer of {image.name}")
