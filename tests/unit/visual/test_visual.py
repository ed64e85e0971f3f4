"""Pictures: what is where in them, and how they reach the disk."""

import numpy as np
import pytest
from PIL import Image

from voken_common import visual
from voken_common.visual import style

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def plain(color, height=8, width=10):
    return np.broadcast_to(np.array(color, np.uint8), (height, width, 3))


def test_grid_places_images_in_rows():
    images = np.stack([plain(RED), plain(BLUE), plain(RED)])
    picture = visual.grid(images, columns=2)
    assert picture.shape == (8 + 2 + 8, 10 + 2 + 10, 3)
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture[:8, :10], images[0])
    np.testing.assert_array_equal(picture[:8, 12:], images[1])
    np.testing.assert_array_equal(picture[10:, :10], images[2])
    assert np.all(picture[8:10] == 255)
    assert np.all(picture[10:, 10:] == 255)
    assert visual.grid(images).shape == picture.shape
    assert visual.grid(images, columns=5).shape == (8, 34, 3)


def test_grid_centres_images_of_other_sizes():
    picture = visual.grid([plain(RED, 8, 10), plain(BLUE, 4, 6)], columns=2)
    assert picture.shape == (8, 22, 3)
    np.testing.assert_array_equal(picture[2:6, 14:20], plain(BLUE, 4, 6))
    assert tuple(picture[1, 16]) == WHITE


def test_floats_are_truncated_and_grey_becomes_rgb():
    image = np.array([[[-1.0], [0.0], [1.0]]])
    assert visual.grid([image])[0].tolist() == [[0] * 3, [127] * 3, [255] * 3]


TITLE = style.LINE + style.GAP


def test_originals_stand_above_their_reconstructions_and_differences():
    originals, reconstructions = np.stack([plain(RED, 100, 128)] * 3), np.stack([plain(BLUE, 100, 128)] * 3)
    picture = visual.reconstruction_grid(originals, reconstructions, columns=3)
    assert picture.shape == (TITLE + 3 * 100 + 2 * 2 + style.LINE, 128 * 3 + 6 * 2, 3)
    body = picture[TITLE:]
    for left in (0, 134, 268):
        np.testing.assert_array_equal(body[:100, left : left + 128], originals[0])
        np.testing.assert_array_equal(body[102:202, left : left + 128], reconstructions[0])
        assert (body[204:304, left : left + 128] == style.INK).all(), "a mean difference of 170 is beyond the scale"
    assert (body[304:] < 128).any(), "PSNR is written underneath"
    named = visual.reconstruction_grid(originals, reconstructions, columns=3, names=["a", "b", "c"])
    assert named.shape[0] == picture.shape[0] + style.LINE
    without = visual.reconstruction_grid(originals, reconstructions, columns=3, differences=False)
    assert without.shape[0] == picture.shape[0] - 102


@pytest.mark.parametrize("side, zoom", [(8, 16), (16, 8), (32, 4), (64, 2), (100, 1), (256, 1), (700, 1)])
def test_small_tiles_are_enlarged(side, zoom):
    assert style.readable_zoom([plain(RED, side, side)]) == zoom
    picture = visual.reconstruction_grid([plain(RED, side, side)], [plain(BLUE, side, side)], differences=False)
    tile = picture[TITLE:, : side * zoom]
    np.testing.assert_array_equal(tile[: side * zoom], plain(RED, side * zoom, side * zoom))
    np.testing.assert_array_equal(tile[side * zoom + 2 : 2 * side * zoom + 2], plain(BLUE, side * zoom, side * zoom))


def test_captions_tell_images_apart_and_long_names_fit():
    cell = plain(WHITE, 4, 80)
    assert (style.captioned(cell, "a") != style.captioned(cell, "b")).any()
    long = style.captioned(cell, "n01440764_0000000000000000000_10026.JPEG")
    assert long.shape == (4 + style.LINE, 80, 3)
    ends = [style.captioned(cell, f"{first}_in_a_long_name_{last}") for first in "xy" for last in "xy"]
    assert len({picture.tobytes() for picture in ends}) == 4, "both ends of a name stay readable"


def test_psnr_under_the_pair_is_that_of_its_bytes():
    random = np.random.default_rng(0)
    original = random.integers(0, 256, (128, 128, 3), np.uint8)
    again = np.clip(original + random.normal(0, 8, original.shape), 0, 255).astype(np.uint8)
    expected = f"{10 * np.log10(255**2 / np.mean((original.astype(float) - again) ** 2)):.1f} dB"
    picture = visual.reconstruction_grid([original], [again], differences=False)
    strip = picture[TITLE + 2 * 128 + 2 :, :128]
    np.testing.assert_array_equal(strip, style.captioned(plain(WHITE, 2, 128), expected)[2:])


def test_side_by_side():
    picture = visual.side_by_side(
        [plain(RED, 128, 96), plain(RED, 64, 40)], [plain(BLUE, 128, 96), plain(BLUE, 64, 40)]
    )
    body = picture[TITLE:]
    np.testing.assert_array_equal(body[:128, 98:194], plain(BLUE, 128, 96))
    assert (body[:128, 196:292] == style.INK).all()
    names = visual.side_by_side([plain(RED)], [plain(BLUE)], names=["x"], differences=False)
    assert names.shape[0] == TITLE + 8 * 13 + 2 * style.LINE


def test_photographs_are_shrunk_for_the_picture_alone():
    random = np.random.default_rng(0)
    original = random.integers(0, 256, (1000, 1536, 3), np.uint8)
    again = original ^ 4
    picture = visual.side_by_side([original], [again], differences=False)
    assert picture.shape == (TITLE + 500 + style.LINE, 2 * 768 + 2, 3)
    expected = f"{10 * np.log10(255**2 / 16):.1f} dB"
    wide = np.full((1, picture.shape[1], 3), 255, np.uint8)
    np.testing.assert_array_equal(picture[TITLE + 500 :], style.captioned(wide, expected)[1:])


def test_differences_have_a_fixed_scale():
    grey = np.full((1, 4, 3), 100, np.uint8)
    other = grey + np.array([0, 16, 32, 64], np.uint8)[None, :, None]
    found = visual.difference_map(grey, other)[0]
    half_blue = np.rint((np.array(style.PAPER) + style.BAR) / 2)
    np.testing.assert_array_equal(found, [style.PAPER, half_blue, style.BAR, style.INK])
    with pytest.raises(ValueError, match="expected the same size twice"):
        visual.difference_map(grey, grey[:, :2])


def test_samples_carry_the_names_of_their_classes():
    samples = np.stack([plain(RED, 32, 32), plain(BLUE, 32, 32)])
    picture = visual.sample_grid(samples, ["cat", "dog"], columns=2)
    assert picture.shape == (128 + style.LINE, 128 * 2 + 2, 3)
    np.testing.assert_array_equal(picture[:128, :128], plain(RED, 128, 128))
    assert (picture[128:, :128] != picture[128:, 130:]).any()
    with pytest.raises(ValueError, match="2 images, 1 names; expected as many of both"):
        visual.sample_grid(samples, ["cat"])


def test_clips_as_strips_and_as_moving_pictures():
    originals = np.stack([np.full((2, 4, 6, 3), 10 * t, np.uint8) for t in range(5)], axis=1)
    again = originals + np.uint8(100)
    strips = visual.clip_strips(originals, again, frames=3)
    zoom = style.readable_zoom([originals[0, 0]])
    height, width = 4 * zoom, 6 * zoom
    assert strips.shape == (2 * (2 * height + 2) + 6, 3 * width + 4, 3)
    assert strips[0, :: width + 2, 0].tolist() == [0, 20, 40]
    assert strips[height + 2, :: width + 2, 0].tolist() == [100, 120, 140]
    moving = visual.clip_pairs(originals, again, columns=2)
    assert moving.shape[0] == 5
    assert moving.shape[1] % 2 == moving.shape[2] % 2 == 0
    assert moving[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40]
    assert moving[:, height + 2, 0, 0].tolist() == [100, 110, 120, 130, 140]
    assert visual.gif(moving, rate=10)[:6] == b"GIF89a"


def test_a_wall_has_a_row_per_class():
    originals = np.full((2, 4, 4, 3), 10, np.uint8)
    samples = np.stack([np.full((3, 4, 4, 3), 100 * (row + 1), np.uint8) for row in range(2)])
    wall = visual.class_wall(["a", "b"], originals, samples, zoom=2)
    gap, cell = style.GAP, 4
    width = 2 * cell + 6 * gap + 2 * (3 * cell + 2 * gap)
    assert wall.shape == (2 * (2 * cell + style.LINE) + gap, width, 3)
    for row in range(2):
        strip = wall[row * (2 * cell + style.LINE + gap) :][: 2 * cell]
        assert (strip[:, : 2 * cell] == 10).all()
        assert (strip[:, 2 * cell : 2 * cell + 6 * gap] == 255).all()
        assert (strip[:, -2 * cell :] == 100 * (row + 1)).all()
    with pytest.raises(ValueError, match="1 names, 2 originals, 2 rows of samples; expected as many of each"):
        visual.class_wall(["a"], originals, samples)


def test_pictures_say_what_is_wrong():
    with pytest.raises(ValueError, match="2 originals, 1 reconstructions; expected as many"):
        visual.side_by_side([plain(RED)] * 2, [plain(RED)])
    with pytest.raises(ValueError, match="1 originals, 1 reconstructions, 2 names"):
        visual.reconstruction_grid([plain(RED)], [plain(RED)], names=["a", "b"])
    with pytest.raises(ValueError, match="no images"):
        visual.grid([])
    with pytest.raises(ValueError, match=r"shape \(3, 8, 8\); expected \(H, W, 3\)"):
        visual.grid([np.zeros((3, 8, 8))])
    with pytest.raises(ValueError, match="one non-negative count per code"):
        visual.codebook_usage_plot(np.array([1, -1]))


def bar_heights(picture):
    return np.sum(np.all(picture == np.array(style.BAR), axis=-1), axis=0)


def test_usage_plot_falls_from_left_to_right_and_ends_with_the_used_codes():
    counts = np.zeros(1000, np.int64)
    counts[::2] = np.arange(1, 501)
    picture = visual.codebook_usage_plot(counts)
    assert picture.shape == (320, 640, 3)
    heights = bar_heights(picture)
    columns = np.flatnonzero(heights)
    assert np.all(np.diff(columns) == 1)
    # The dashed line and the scale's lines lie behind or over a bar by a pixel or so.
    assert np.all(np.diff(heights[columns]) <= 2)
    assert columns.size / (634 - columns[0]) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("counts", [[0, 0, 0], [1], [10**9, 1], list(range(5000))])
def test_usage_plot_of_extreme_counts(counts):
    picture = visual.codebook_usage_plot(np.array(counts), width=300, height=200)
    assert picture.shape == (200, 300, 3)
    assert bar_heights(picture).any() == any(counts)


def test_save_png_is_whole_or_absent(tmp_path, monkeypatch):
    picture = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    path = visual.save_png(tmp_path / "new" / "x.png", picture)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), picture)
    ordinary = path.parent / "y"
    ordinary.touch()
    assert path.stat().st_mode == ordinary.stat().st_mode
    ordinary.unlink()
    before = path.read_bytes()

    def fails(self, file, format):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(Image.Image, "save", fails)
    with pytest.raises(OSError, match="no space"):
        visual.save_png(path, picture)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["x.png"]
