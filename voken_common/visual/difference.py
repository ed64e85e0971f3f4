"""Difference of two images as a picture: white where they agree, darker the more they differ."""

from __future__ import annotations

import numpy as np
from jaxtyping import Num

from voken_common.visual.style import BAR, INK, PAPER, Picture, rgb

FULL_SCALE = 64
"""Mean difference of the channels, in grey levels of 255, from which on the map is darkest."""


def difference_map(original: Num[np.ndarray, "h w c"], image: Num[np.ndarray, "h w c"]) -> Picture:
    """Mean absolute difference of the channels, white for none, blue for half of `FULL_SCALE`, ink from there on.

    The scale is fixed, so that maps of different images and models can be compared.

    Raises:
        ValueError: the images are not of one size.
    """
    first, second = rgb(original).astype(np.float64), rgb(image).astype(np.float64)
    if first.shape != second.shape:
        raise ValueError(f"images of {first.shape[:2]} and {second.shape[:2]} pixels; expected the same size twice")
    share = np.minimum(np.abs(first - second).mean(axis=-1) / FULL_SCALE, 1.0)
    stops = np.array([PAPER, BAR, INK], np.float64)
    channels = [np.interp(share, [0.0, 0.5, 1.0], stops[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)
