"""Both resize conventions, bit for bit."""

import numpy as np
import pytest

from voken_common.data.transforms import center_crop, preprocess, resize_short_side

KINDS = ["preprocess"]


@pytest.mark.parametrize("convention", ["pil", "cv2"])
def test_preprocess(case, convention):
    image, size = case.arrays["in/image"], case.config["size"]
    expected = case.arrays[f"out/{convention}_uint8"]
    pixels = center_crop(resize_short_side(image, size, convention), size, convention)
    np.testing.assert_array_equal(pixels, expected)
    scaled = preprocess(image, size, convention)
    assert scaled.dtype == np.float32
    np.testing.assert_array_equal(scaled, (expected / 127.5 - 1).astype(np.float32))
