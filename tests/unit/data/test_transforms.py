"""Resize conventions bit for bit, crops, scaling and padding."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from voken_common.data import transforms

GOLDEN = Path(__file__).parents[2] / "golden"

# OpenCV 5.0.0, INTER_LINEAR, of `pattern`: enlarged (with all four borders, whose rounding differs) and reduced.
OPENCV = {
    ((3, 4), (7, 9)): (
        "008a63169b7052ca9189e6ae9d7ea9b217a5a5517e93a2528dc042027b68168a724bb38e7ccda48a7f9999318e945b6f8c964e89ac410850"
        "76155879386e825681875280694e804c6179447672407e6f3e0e24841425812529773036691a823904ce092d9719604e3273323b45295744"
        "355f425673417482487f6f4f895d6c63608d37669926697c2e2b74453d5f846f52b39b767ba69b43b0ab2fa7b9209bbe1a978e301c844b32"
        "69936d58c8a3867ab8b42cccc11dbfc818adcb16a6"
    ),
    ((13, 11), (5, 4)): (
        "89aa4c9f8a60aa6474ae3ea2bc457dbd5bdaa59087d96eb17144626f905e548360401f496f8d902b90a866dfa7d9b18ea45cc3a976c65d90"
        "a223915a"
    ),
}


def pattern(height, width):
    i = np.arange(height * width * 3)
    return ((i * i * 37 + i * 101) % 251).astype(np.uint8).reshape(height, width, 3)


@pytest.mark.parametrize("convention", ["pil", "cv2"])
@pytest.mark.parametrize("name", ["preprocess_landscape", "preprocess_large", "preprocess_portrait_up"])
def test_preprocess_matches_the_reference_bit_for_bit(name, convention):
    size = json.loads((GOLDEN / f"{name}.json").read_text())["size"]
    arrays = np.load(GOLDEN / f"{name}.npz")
    image, expected = arrays["in/image"], arrays[f"out/{convention}_uint8"]
    resized = transforms.resize_short_side(image, size, convention)
    np.testing.assert_array_equal(transforms.center_crop(resized, size, convention), expected)
    floats = transforms.preprocess(image, size, convention)
    assert floats.dtype == np.float32
    np.testing.assert_array_equal(floats, (expected / 127.5 - 1).astype(np.float32))


@pytest.mark.parametrize("convention", ["pil", "cv2", "none"])
@pytest.mark.parametrize("shape", [(40, 61), (61, 40), (16, 16), (9, 30), (16, 23)])
def test_an_image_that_pillow_holds_resizes_to_the_same(convention, shape):
    image = pattern(*shape)
    expected = transforms.resize_short_side(image, 16, convention)
    np.testing.assert_array_equal(transforms.resize_pillow_image(Image.fromarray(image), 16, convention), expected)


@pytest.mark.parametrize("shape", [(40, 61), (61, 40), (16, 16), (9, 30), (16, 23), (375, 500)])
@pytest.mark.parametrize("convention", ["pil", "cv2", "none"])
def test_resizing_the_crop_alone_gives_the_crop_of_the_resized(convention, shape):
    image, rng = pattern(*shape), np.random.default_rng(0)
    for place in (
        transforms.central(convention),
        transforms.relative((0.0, 0.0)),
        transforms.relative((1.0, 1.0)),
        *(transforms.random_place(rng) for _ in range(5)),
    ):
        expected = transforms.crop(transforms.resize_short_side(image, 16, convention), 16, place)
        found = transforms.resize_pillow_crop(Image.fromarray(image), 16, convention, place)
        if convention == "cv2":
            np.testing.assert_array_equal(found, expected)
        else:
            difference = np.abs(found.astype(int) - expected)
            assert difference.max() <= 1
            assert (difference > 0).mean() < 0.03


def test_clips_are_cropped_and_flipped_frame_by_frame():
    clip = np.stack([pattern(20, 30), pattern(20, 30)[::-1]])
    for crop in (
        lambda images: transforms.center_crop(images, 16, "pil"),
        lambda images: transforms.center_crop(images, 16, "cv2"),
        lambda images: transforms.random_crop(images, 16, np.random.default_rng(1)),
        lambda images: transforms.random_flip(images, np.random.default_rng(1)),
        lambda images: transforms.random_flip(images, np.random.default_rng(0)),
    ):
        np.testing.assert_array_equal(crop(clip), np.stack([crop(frame) for frame in clip]))


@pytest.mark.parametrize("sizes", OPENCV, ids=str)
def test_cv2_resize_matches_opencv_to_the_borders(sizes):
    (source, target), expected = sizes, bytes.fromhex(OPENCV[sizes])
    assert transforms.resize_bilinear_cv2(pattern(*source), *target).tobytes() == expected


def test_short_side_sizes_of_each_convention():
    image = np.zeros((30, 47, 3), np.uint8)
    assert transforms.resize_short_side(image, 20, "pil").shape == (20, 31, 3)
    assert transforms.resize_short_side(image, 20, "cv2").shape == (20, 31, 3)
    assert transforms.resize_short_side(image[:, :46], 20, "pil").shape == (20, 30, 3)
    assert transforms.resize_short_side(image[:, :46], 20, "cv2").shape == (20, 31, 3)
    assert transforms.resize_short_side(image, 20, "none") is image
    assert transforms.resize_short_side(image, 40, "none").shape == (40, 62, 3)
    with pytest.raises((ValueError, TypeError), match="area"):
        transforms.resize_short_side(image, 20, "area")


def test_centre_crop_offsets_round_half_to_even_or_down():
    rows = np.arange(40, dtype=np.uint8)[:, None, None].repeat(40, 1).repeat(3, 2)
    first = {c: [int(transforms.center_crop(rows[:n], 20, c)[0, 0, 0]) for n in (21, 23, 25)] for c in ("pil", "cv2")}
    assert first == {"pil": [0, 2, 2], "cv2": [0, 1, 2]}


def test_crops_cover_the_image_and_refuse_small_ones():
    image = pattern(9, 7)
    np.testing.assert_array_equal(transforms.crop(image, 4, transforms.relative((0.0, 0.0))), image[:4, :4])
    np.testing.assert_array_equal(transforms.crop(image, 4, transforms.relative((1.0, 1.0))), image[5:, 3:])
    rng = np.random.default_rng(0)
    crops = {transforms.random_crop(image, 4, rng).tobytes() for _ in range(600)}
    assert crops == {image[t : t + 4, u : u + 4].tobytes() for t in range(6) for u in range(4)}
    for crop in (lambda: transforms.random_crop(image, 8, rng), lambda: transforms.center_crop(image, 8, "pil")):
        with pytest.raises(ValueError, match=r"cannot cut 8x8 pixels \(height x width\) out of 9x7: resize first"):
            crop()


def test_random_flip_is_a_fair_mirror():
    image = pattern(2, 3)
    rng = np.random.default_rng(0)
    flips = sum(np.array_equal(transforms.random_flip(image, rng), image[:, ::-1]) for _ in range(400))
    assert 160 < flips < 240


def test_bytes_to_floats_are_rounded_once():
    values = np.arange(256, dtype=np.uint8)
    expected = (values.astype(np.float64) / 127.5 - 1).astype(np.float32)
    np.testing.assert_array_equal(transforms.to_float(values), expected)
    assert (expected[0], expected[-1]) == (-1, 1)


def test_padding_region_is_that_of_the_reference():
    images = np.ones((1, 37, 50, 3))
    padded, region = transforms.pad_to_multiple(images)
    assert padded.shape == (1, 48, 64, 3)
    assert list(region) == json.loads((GOLDEN / "metrics.json").read_text())["crop_region"]
    assert padded.sum() == images.sum()


@settings(max_examples=30, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), multiple=st.integers(1, 16))
def test_padding_is_undone_by_the_crop(height, width, multiple):
    images = pattern(height, width)[None].astype(np.float32)
    padded, region = transforms.pad_to_multiple(images, multiple)
    assert all(side % multiple == 0 for side in padded.shape[1:3])
    assert padded.shape[1] - height < multiple
    np.testing.assert_array_equal(transforms.crop_to_region(padded, region), images)
