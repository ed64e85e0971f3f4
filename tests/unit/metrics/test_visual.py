"""Pictures: what is where in them, and how they reach the disk."""

import numpy as np
import pytest
from PIL import Image

from voken_common import visual

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


def test_originals_stand_above_their_reconstructions():
    originals, reconstructions = np.stack([plain(RED)] * 3), np.stack([plain(BLUE)] * 3)
    picture = visual.reconstruction_grid(originals, reconstructions, columns=3)
    assert picture.shape == (18, 10 * 3 + 6 * 2, 3)
    for left in (0, 16, 32):
        np.testing.assert_array_equal(picture[:8, left : left + 10], originals[0])
        np.testing.assert_array_equal(picture[10:, left : left + 10], reconstructions[0])
    labelled = visual.reconstruction_grid(originals, reconstructions, columns=3, labels=["a", "b", "c"])
    np.testing.assert_array_equal(labelled[:18], picture)
    assert labelled.shape[0] > 18
    assert labelled[18:].min() < 128, "the label is drawn"


def test_side_by_side():
    picture = visual.side_by_side([plain(RED), plain(RED, 4, 6)], [plain(BLUE), plain(BLUE, 4, 6)])
    assert picture.shape == (8 + 6 + 8, 22, 3)
    np.testing.assert_array_equal(picture[:8, 12:], plain(BLUE))
    labelled = visual.side_by_side([plain(RED)], [plain(BLUE)], labels=["x"])
    np.testing.assert_array_equal(labelled[:8], picture[:8])


def test_a_wall_has_a_row_per_class():
    originals = np.full((2, 4, 4, 3), 10, np.uint8)
    samples = np.stack([np.full((3, 4, 4, 3), 100 * (row + 1), np.uint8) for row in range(2)])
    wall = visual.class_wall(["a", "b"], originals, samples, zoom=2)
    caption = 15
    gap, cell = visual.GAP, 4
    width = 2 * cell + 6 * gap + 2 * (3 * cell + 2 * gap)
    assert wall.shape == (2 * (2 * cell + caption) + gap, width, 3)
    for row in range(2):
        strip = wall[row * (2 * cell + caption + gap) :][: 2 * cell]
        assert (strip[:, : 2 * cell] == 10).all()
        assert (strip[:, 2 * cell : 2 * cell + 6 * gap] == 255).all()
        assert (strip[:, -2 * cell :] == 100 * (row + 1)).all()
    with pytest.raises(ValueError, match="1 names, 2 originals, 2 rows of samples; expected as many of each"):
        visual.class_wall(["a"], originals, samples)


def test_pictures_say_what_is_wrong():
    with pytest.raises(ValueError, match="2 originals, 1 reconstructions; expected as many"):
        visual.side_by_side([plain(RED)] * 2, [plain(RED)])
    with pytest.raises(ValueError, match="1 originals, 1 reconstructions, 2 labels"):
        visual.reconstruction_grid([plain(RED)], [plain(RED)], labels=["a", "b"])
    with pytest.raises(ValueError, match="no images"):
        visual.grid([])
    with pytest.raises(ValueError, match=r"shape \(3, 8, 8\); expected \(H, W, 3\)"):
        visual.grid([np.zeros((3, 8, 8))])
    with pytest.raises(ValueError, match="one non-negative count per code"):
        visual.codebook_usage_plot(np.array([1, -1]))


def bar_heights(picture):
    return np.sum(np.all(picture == np.array(visual._BAR), axis=-1), axis=0)


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
