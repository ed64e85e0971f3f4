"""Image files through a tokenizer that is plain arithmetic: finding, skipping, naming, batching, padding."""

import json
import logging
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.support.tiny import TINY
from voken_common.config.loading import validate
from voken_common.data.errors import DataError
from voken_common.evaluation.images.inputs import find_images
from voken_common.evaluation.images.reconstruct import (
    MOST_PROGRAMS,
    Treatment,
    _save_arrays,
    output_names,
    reconstruct,
)
from voken_common.metrics import HIGHEST_PSNR

FACTOR = 4


class Means:
    """The id of a cell is its top left grey value; decoding paints the cell with it. Counts shapes as programs."""

    config, downsampling = validate(TINY, "tiny"), FACTOR

    def __init__(self):
        self.shapes = set()

    def encode(self, images):
        self.shapes.add(images.shape)
        return np.rint((images[:, ::FACTOR, ::FACTOR, 0] + 1) * 127.5).astype(np.int32)

    def decode(self, ids):
        grey = np.repeat(np.repeat(ids, FACTOR, 1), FACTOR, 2) / 127.5 - 1
        return np.repeat(grey[..., None], 3, -1).astype(np.float32)


def save(path, height=8, width=8, value=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(path)


def run(folder, output, limit=None, tokenizer=None, **treatment):
    return reconstruct(tokenizer or Means(), find_images(folder, output, limit), output, Treatment(**treatment))


def test_what_does_not_decode_is_left_out_and_told(tmp_path, caplog):
    images = tmp_path / "images"
    save(images / "a.png")
    save(images / "b" / "c.jpg")
    (images / "cut.jpg").write_bytes((images / "b" / "c.jpg").read_bytes()[:300])
    (images / "text.png").write_text("<html>")
    (images / "empty.png").write_bytes(b"")
    for hidden in ("._a.png", ".ipynb_checkpoints/a.png"):
        (images / hidden).parent.mkdir(exist_ok=True)
        (images / hidden).write_bytes(b"\0\5\x16\7")
    (images / "b" / "notes.txt").write_text("x")
    with caplog.at_level(logging.INFO):
        values = run(images, tmp_path / "out")
    assert list(values) == ["a.png", "b__c.jpg"]
    summary = json.loads((tmp_path / "out" / "psnr.json").read_text())
    assert summary["images"] == values
    assert summary["left_out"].keys() == {"cut.jpg", "text.png", "empty.png"}
    assert f"{images}/cut.jpg: " in summary["left_out"]["cut.jpg"]
    for text in ("text.png: not an image in a known format; left out", "3 of 5 images were left out", "1 .txt"):
        assert text in caplog.text


def test_nothing_that_decodes_is_an_error(tmp_path):
    (tmp_path / "a.png").write_text("x")
    with pytest.raises(DataError, match=r"no image can be decoded: .*a.png: not an image"):
        run(tmp_path / "a.png", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_image_is_lost_for_its_name(tmp_path):
    images = tmp_path / "images"
    names = ["a__b.png", "a/b.png", "file", "A/b.png", "psnr.json", "args", "allow_pickle", "x.npy", "\u6f22 \u00e9"]
    for number, name in enumerate(names):
        save(images / f"{name.removesuffix('.png')}.png", value=number)
    values = run(images, tmp_path / "out")
    pictures = {p.name for p in (tmp_path / "out").glob("*.reconstruction.png")}
    assert pictures == {f"{name}.reconstruction.png" for name in values}
    assert len(values) == len(names)
    with np.load(tmp_path / "out" / "ids.npz") as ids:
        assert sorted(int(ids[name][0, 0]) for name in values) == list(range(len(names)))
        assert set(ids.files) == set(values)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.lists(st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=6), min_size=1, max_size=3).map(
            "/".join
        ),
        unique=True,
        max_size=8,
    )
)
def test_any_names_stay_apart_and_inside(keys):
    names = output_names(keys)
    assert len({name.casefold() for name in names}) == len(keys)
    for name in names:
        assert "/" not in name
        assert name not in ("", ".", "..")
        assert len(os.fsencode(f"{name}.reconstruction.png")) <= 255


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0/\\"), min_size=1), unique=True)
)
def test_arrays_of_any_name_come_back(tmp_path_factory, names):
    path = tmp_path_factory.mktemp("npz") / "ids.npz"
    _save_arrays(path, {name: np.full((2, 3), number) for number, name in enumerate(names)})
    with np.load(path) as found:
        assert {name: int(found[name][0, 0]) for name in names} == {name: i for i, name in enumerate(names)}


@pytest.mark.parametrize("place", ["out", "deep/er/out"])
def test_results_are_not_taken_for_images(tmp_path, place):
    save(tmp_path / "a.png")
    save(tmp_path / "deep" / "b.png")
    first = run(tmp_path, tmp_path / place)
    assert run(tmp_path, tmp_path / place) == first
    assert run(tmp_path, tmp_path / "another") == first
    with pytest.raises(DataError, match="is the input folder"):
        run(tmp_path, tmp_path / "deep" / "..")


def test_twenty_four_sizes_are_few_programs(tmp_path, caplog):
    for number in range(24):
        save(tmp_path / "images" / f"{number:02}.png", 8 + number, 40 - number, 3 * number)
    tokenizer = Means()
    with caplog.at_level(logging.INFO):
        values = run(tmp_path / "images", tmp_path / "out", tokenizer=tokenizer)
    assert len(tokenizer.shapes) <= MOST_PROGRAMS
    assert "programs are compiled" in caplog.text
    assert list(values) == [f"{number:02}.png" for number in range(24)]
    for number, name in enumerate(values):
        with Image.open(tmp_path / "out" / f"{name}.reconstruction.png") as image:
            assert image.size == (40 - number, 8 + number)
    exact = Means()
    run(tmp_path / "images", tmp_path / "exact", tokenizer=exact, multiple=FACTOR)
    assert len(exact.shapes) > MOST_PROGRAMS


def test_images_of_one_size_go_in_batches_of_one_shape(tmp_path):
    for number in range(7):
        save(tmp_path / "images" / f"{number}.png", value=10 * number)
    save(tmp_path / "images" / "other.png", 12, 8, 250)
    tokenizer = Means()
    values = run(tmp_path / "images", tmp_path / "out", tokenizer=tokenizer, batch_size=3)
    assert tokenizer.shapes == {(3, 8, 8, 3), (1, 12, 8, 3)}
    # Constant images come back to the byte, or all but.
    assert min(values.values()) > 48
    assert max(values.values()) == HIGHEST_PSNR
    with np.load(tmp_path / "out" / "ids.npz") as ids:
        assert [int(ids[f"{number}.png"][0, 0]) for number in range(7)] == [10 * number for number in range(7)]


def test_resizing_limit_and_lists(tmp_path):
    for number in range(4):
        save(tmp_path / "images" / f"{number}.png", 20 + number, 30)
    tokenizer = Means()
    assert list(run(tmp_path / "images", tmp_path / "a", limit=2, tokenizer=tokenizer, side=8)) == ["0.png", "1.png"]
    assert tokenizer.shapes == {(2, 8, 8, 3)}
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfimages/3.png\r\nimages/0.png\r\n")
    assert list(run(tmp_path / "list.txt", tmp_path / "b")) == ["images__3.png", "images__0.png"]
    with pytest.raises(DataError, match="--image-size 10 is no multiple of 4"):
        run(tmp_path / "images", tmp_path / "c", side=10)
    with pytest.raises(DataError, match="--limit 0: expected at least 1"):
        run(tmp_path / "images", tmp_path / "c", limit=0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_where_it_is_asked_for(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.full((8, 16, 3), 200, np.uint8)
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images" / "a.png", exif=exif)
    for rotate in (False, True):
        run(tmp_path / "images", tmp_path / str(rotate), exif_rotate=rotate)
        with Image.open(tmp_path / str(rotate) / "a.png.reconstruction.png") as image:
            assert image.size == ((8, 16) if rotate and orientation > 4 else (16, 8))
