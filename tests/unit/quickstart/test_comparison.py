"""The quickstart's baseline and table: k-means of patches, crops of the photographs, PSNR of both."""

import numpy as np
import pytest

from voken_common.config.schema.data import DataConfig, SkimageConfig
from voken_common.data.pipeline import build_validation_batches
from voken_common.data.sources.skimage import PHOTOGRAPHS, Photographs, load_photograph
from voken_common.metrics import psnr
from voken_common.quickstart.comparison import Row, compare, held_out_crops, photograph_names, table
from voken_common.quickstart.kmeans import fit_kmeans, patches_of


def test_patches_and_back():
    images = np.arange(2 * 4 * 6 * 3, dtype=np.float32).reshape(2, 4, 6, 3)
    patches = patches_of(images, 2)
    assert patches.shape == (2 * 2 * 3, 12)
    np.testing.assert_array_equal(patches[1], images[0, :2, 2:4].ravel())
    np.testing.assert_array_equal(patches[6 + 4], images[1, 2:, 2:4].ravel())
    np.testing.assert_array_equal(patches_of(images[:, :3], 2), patches.reshape(2, 2, 3, 12)[:, 0].reshape(-1, 12))


def test_few_colours_are_found_exactly():
    """Images of four flat tiles have four patches, which as many centres hold without loss."""
    random = np.random.default_rng(0)
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 128, 255], [255, 255, 255]], np.uint8)
    images = [colours[random.integers(4, size=(30, 40))].repeat(2, axis=0).repeat(2, axis=1) for _ in range(2)]
    # Odd starts cut through tiles: only even ones show whole tiles, so one image is as good as its shifted self.
    kmeans = fit_kmeans([np.broadcast_to(c, (20, 20, 3)).copy() for c in colours], patch=2, codes=4)
    assert kmeans.bits_per_pixel == 2 / 4
    batch = np.stack(images)
    ids = kmeans.encode(batch)
    assert ids.shape == (2, 30, 40)
    assert psnr(batch, kmeans.decode(ids).clip(-1, 1)).min() > 40


def test_more_codes_are_better_and_never_worse_than_the_mean():
    images = [Photographs("train").read(i)[0] for i in (0, 2)]
    crops = np.stack([image[:96, :96] for image in images])
    values = []
    for codes in (2, 16, 64):
        kmeans = fit_kmeans(images, 4, codes)
        values.append(psnr(crops, kmeans.decode(kmeans.encode(crops)).clip(-1, 1)).mean())
    assert values[0] + 2 < values[1]
    assert values[1] + 1 < values[2]
    mean = np.broadcast_to(crops.mean(axis=(0, 1, 2)).astype(np.uint8), crops.shape)
    assert values[0] > psnr(crops, mean).mean()


def test_kmeans_says_what_does_not_fit():
    kmeans = fit_kmeans([np.zeros((40, 40, 3), np.uint8)], 4, 2)
    with pytest.raises(ValueError, match="images of 6x8 pixels; expected sides divisible by the patch, 4"):
        kmeans.encode(np.zeros((1, 6, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="patches of 4x4 pixels for 1024 codes; expected at least as many"):
        fit_kmeans([np.zeros((40, 40, 3), np.uint8)], 4, 1024)


def test_crops_are_the_centres_of_the_held_out_parts():
    crops = held_out_crops()
    assert crops.shape == (8, 128, 128, 3)
    for number, name in enumerate(PHOTOGRAPHS):
        photograph, region = load_photograph(name), Photographs("held_out").read(number)[0]
        top, left = ((length - 128) / 2 for length in region.shape[:2])
        close = [
            region[y : y + 128, x : x + 128]
            for y in (int(top), int(np.ceil(top)))
            for x in (int(left), int(np.ceil(left)))
        ]
        shown = ((crops[number] + 1) * 127.5).round().astype(np.uint8)
        assert any((shown == part).all() for part in close), name
        assert region.shape[1] < 0.31 * photograph.shape[1]
    assert len(photograph_names()) == len(PHOTOGRAPHS)


def test_both_rows_are_of_the_same_crops_and_bits():
    crops = held_out_crops()
    again = np.clip(crops + 0.1, -1, 1)
    ours, kmeans = compare("ours", crops, again, patch=8, codes=16)
    np.testing.assert_array_equal(ours.psnr, psnr(crops, again))
    assert ours.bits_per_pixel == kmeans.bits_per_pixel == 4 / 64
    assert kmeans.name == "k-means, 8x8 patches"
    assert 15 < kmeans.psnr.mean() < 30


def test_table_shows_mean_worst_and_every_crop():
    rows = [Row("ours", 0.625, np.array([20.0, 30.0])), Row("k-means, 4x4 patches", 0.625, np.array([25.04, 27.0]))]
    head, ours, kmeans = table(rows, ["astronaut", "motorcycle left"]).splitlines()
    assert "astronaut" in head
    assert "motorcycl" in head
    assert ours.split() == ["ours", "0.625", "25.00", "20.00", "20.0", "30.0"]
    assert kmeans.split()[-4:] == ["26.02", "25.04", "25.0", "27.0"]
    assert len({len(line) for line in (head, ours, kmeans)}) == 1


def test_validation_may_have_a_size_of_its_own():
    source = SkimageConfig(region="held_out", crops=8)
    data = DataConfig(train=source, validation=source, image_size=16, validation_image_size=48, resize="none")
    (batch,) = build_validation_batches(data, batch_size=8)
    assert batch["image"].shape == (8, 48, 48, 3)
    (same,) = build_validation_batches(data.model_copy(update={"validation_image_size": None}), batch_size=8)
    assert same["image"].shape == (8, 16, 16, 3)
