"""Every kind of source: what it finds, in which order, and what its errors say."""

import json
import os
import pickle
import shutil
import subprocess
import sys

import grain
import numpy as np
import pytest
from PIL import Image

from voken_common.config.schema.data import DataConfig, ImageFolderConfig, ListFileConfig, SkimageConfig, TFDSConfig
from voken_common.data.decode import decode_image
from voken_common.data.errors import DataError, ImageDecodeError
from voken_common.data.images import SampleLoader
from voken_common.data.pipeline import build_train_iterator
from voken_common.data.sources.build import build_source
from voken_common.data.sources.folder import ImageFolder, ListFile, StringTable
from voken_common.data.sources.skimage import PHOTOGRAPHS, Photographs, load_photograph


def write_image(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    form = "JPEG" if path.suffix.lower() in (".jpeg", ".jpg") else None
    Image.new("RGB", (8, 6), (value, 0, 0)).save(path, form)


def keys(source):
    return [os.path.relpath(source.key(i), source.root) for i in range(len(source))]


def labels(source):
    return [source.read(i)[1] for i in range(len(source))]


@pytest.fixture
def imagenet(tmp_path):
    root = tmp_path / "train"
    for name in ("n02/n02_2.JPEG", "n02/n02_10.JPEG", "n01/n01_5.jpeg", "n03/deep/x.png", "n03/a.png"):
        write_image(root / name)
    (root / "n01" / "notes.txt").write_text("not an image")
    (root / "README").write_text("not an image")
    (root / ".hidden").mkdir()
    write_image(root / "n02" / "._n02_2.JPEG")
    return root


def test_imagenet_layout(imagenet):
    source = build_source(ImageFolderConfig(path=str(imagenet)))
    assert keys(source) == ["n01/n01_5.jpeg", "n02/n02_10.JPEG", "n02/n02_2.JPEG", "n03/a.png", "n03/deep/x.png"]
    assert labels(source) == [0, 1, 1, 2, 2]
    assert source.classes == ("n01", "n02", "n03")
    assert source.describe() == f"image folder {imagenet}: 5 images, 3 classes"
    sample = source[0]
    assert (sample["label"], sample["key"]) == (0, str(imagenet / "n01" / "n01_5.jpeg"))
    assert decode_image(sample["image"]).shape == (6, 8, 3)


def test_a_source_is_a_grain_source_and_travels_to_workers(imagenet):
    source = build_source(ImageFolderConfig(path=str(imagenet)))
    assert isinstance(source, grain.sources.RandomAccessDataSource)
    assert keys(pickle.loads(pickle.dumps(source))) == keys(source)


def test_excluded_names_leave_labels_alone(imagenet):
    source = build_source(ImageFolderConfig(path=str(imagenet), exclude=("n01_5.jpeg", "n02_2.JPEG")))
    assert keys(source) == ["n02/n02_10.JPEG", "n03/a.png", "n03/deep/x.png"]
    assert labels(source) == [1, 2, 2]


def test_flat_folder_and_home(tmp_path, monkeypatch):
    for name in ("b.png", "a.JPG", "c.webp"):
        write_image(tmp_path / "photos" / name)
    (tmp_path / "photos" / "empty").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    source = ImageFolder("~/photos")
    assert keys(source) == ["a.JPG", "b.png", "c.webp"]
    assert labels(source) == [0, 0, 0]
    assert source.describe() == f"image folder {tmp_path}/photos: 3 images, flat"


def test_missing_folder_says_what_was_found_and_shows_the_tree(tmp_path):
    for name in "abcdefg":
        (tmp_path / name).mkdir()
    with pytest.raises(DataError) as caught:
        ImageFolder(str(tmp_path / "imagenet" / "train"))
    message = str(caught.value)
    assert f"no image folder at {tmp_path}/imagenet/train: it does not exist; {tmp_path} exists" in message
    assert "holds a, b, c, d, e and 2 more" in message
    assert "n01440764_10026.JPEG" in message
    assert "one folder per class" in message


def test_folders_that_are_something_else(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no images in .*empty: it is empty; looked for \.jpg, .*Expected"):
        ImageFolder(str(tmp_path / "empty"))
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("a")
    (tmp_path / "text" / "b").mkdir()
    with pytest.raises(DataError, match=r"no images in .*text: found 1 folders \(b\) and 1 files \(a\.txt\); looked"):
        ImageFolder(str(tmp_path / "text"))
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "0.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 files \(0\.tar\); .* Tars are read by kind tar or imagenet_tar\. Expected"):
        ImageFolder(str(tmp_path / "tars"))
    with pytest.raises(DataError, match=r"no image folder at .*a\.txt: is a file, not a folder\. Expected"):
        ImageFolder(str(tmp_path / "text" / "a.txt"))
    write_image(tmp_path / "splits" / "train" / "n01" / "a.png")
    write_image(tmp_path / "splits" / "val" / "n01" / "a.png")
    with pytest.raises(
        DataError, match=r"holds the folders train, val, which are splits .* name one of them, as .*train"
    ):
        ImageFolder(str(tmp_path / "splits"))
    with pytest.raises(DataError, match=r"s3://bucket/images: folders of images are read from file systems only; of"):
        ImageFolder("s3://bucket/images")
    write_image(tmp_path / "mixed" / "a.png")
    write_image(tmp_path / "mixed" / "cats" / "b.png")
    with pytest.raises(DataError, match=r"holds both images \(a\.png\) and folders of images \(cats\)"):
        ImageFolder(str(tmp_path / "mixed"))


def test_a_class_that_cannot_be_listed_is_not_passed_over(imagenet, monkeypatch):
    scandir = os.scandir

    def refusing(path):
        if os.fspath(path).endswith("n02"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(DataError, match=r"cannot list the folder .*train/n02: Permission denied; make it readable"):
        ImageFolder(str(imagenet))


def test_links_to_folders_below_a_class_are_told(imagenet, tmp_path, caplog):
    write_image(tmp_path / "elsewhere" / "b.png")
    (imagenet / "n03" / "linked").symlink_to(tmp_path / "elsewhere")
    (imagenet / "n04").symlink_to(tmp_path / "elsewhere")
    assert keys(ImageFolder(str(imagenet)))[-2:] == ["n03/deep/x.png", "n04/b.png"]
    assert f"{imagenet}/n03: links to folders are not followed below a class: linked" in caplog.text


def test_list_file_with_and_without_labels(tmp_path):
    for name in ("one.png", "sub/two.png"):
        write_image(tmp_path / "images" / name)
    (tmp_path / "images" / "list.txt").write_text("sub/two.png\n\none.png\n")
    source = build_source(ListFileConfig(path=str(tmp_path / "images" / "list.txt")))
    assert (keys(source), labels(source)) == (["sub/two.png", "one.png"], [0, 0])
    (tmp_path / "labelled.txt").write_text(f"{tmp_path}/images/one.png\t3\nsub/two.png\t0\n")
    source = build_source(ListFileConfig(path=str(tmp_path / "labelled.txt"), root=str(tmp_path / "images")))
    assert (keys(source), labels(source)) == (["one.png", "sub/two.png"], [3, 0])
    assert source.describe() == f"list file {tmp_path}/labelled.txt: 2 images, 4 classes"


@pytest.mark.parametrize(
    "content, message",
    [
        ("a.png\tcat\n", r"line 1: label 'cat' after the tab is not an integer from 0"),
        ("a.png\t1\nb.png\n", r"line 2 has no label, unlike the lines before it: label all images or none"),
        ("a.png\nb.png\t1\n", r"line 2 has a label, unlike the lines before it"),
        ("\n \n", r"names no images: expected one PATH or PATH<TAB>LABEL per line"),
        ("a.png\nb.png\n", r"the first 2 files of .*list\.txt do not exist: .*a\.png, .*data\.train\.root"),
        (b"\xff\xfe\x00", r"cannot read the list file .*list\.txt as UTF-8 text"),
    ],
)
def test_malformed_lists(tmp_path, content, message):
    path = tmp_path / "list.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        ListFile(str(path))


def test_missing_list(tmp_path):
    with pytest.raises(
        DataError, match=r"no list file at .*list\.txt: it does not exist; .* holds nothing\. Expected a"
    ):
        ListFile(str(tmp_path / "list.txt"))


def test_string_table_keeps_any_file_name():
    names = ["", "a", "grüße/犬.png", os.fsdecode(b"latin\xe9.jpg"), "a"]
    assert list(StringTable(names)) == names


@pytest.mark.parametrize("length", [1, 2, 7, 100, 1281])
def test_the_evaluation_order_is_a_permutation_with_representative_beginnings(tmp_path, length):
    write_image(tmp_path / "a.png")
    (tmp_path / "list.txt").write_text("a.png\n" * length)
    source = ListFile(str(tmp_path / "list.txt"))
    order = [source.evaluation_index(rank) for rank in range(length)]
    assert sorted(order) == list(range(length))
    if length >= 100:
        gaps = np.diff(sorted([*order[:10], length]))
        assert gaps.max() < 3 * length / 10


def test_photograph_regions_share_no_pixel():
    regions = {name: Photographs(name) for name in ("train", "held_out", "all")}
    for index in range(len(PHOTOGRAPHS)):
        train, held_out, whole = (regions[name].read(index)[0] for name in ("train", "held_out", "all"))
        np.testing.assert_array_equal(np.concatenate([train, held_out], axis=1), whole)
        assert train.base is load_photograph(PHOTOGRAPHS[index])
        assert min(held_out.shape[:2]) >= 128


def test_photograph_crops_are_dealt_in_turn_and_spread_evenly():
    source = build_source(SkimageConfig(region="held_out", crops=200))
    assert len(source) == 200
    assert labels(source) == [i % 8 for i in range(200)]
    positions = np.array([source.crop_position(i) for i in range(3, 200, 8)])
    cells, _, _ = np.histogram2d(*positions.T, bins=3, range=[[0, 1], [0, 1]])
    assert cells.min() >= 1
    assert cells.max() <= 4
    assert source.key(11) == "hubble_deep_field.jpg[held_out]#1"
    assert source.describe() == "8 photographs of scikit-image, region held_out, 200 crops per epoch"
    assert build_source(SkimageConfig(region="all")).crop_position(3) is None


def test_photographs_without_scikit_image_name_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"scikit-image, which is not installed: pip install 'voken\[data\]'"):
        Photographs("all")


BUILDER = """
import io, sys
import numpy as np, tensorflow_datasets as tfds
from PIL import Image

class Tiny(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    def _info(self):
        photo, label = tfds.features.Image(encoding_format="png"), tfds.features.ClassLabel(num_classes=3)
        features = {"photo": photo, "label": label}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))
    def _split_generators(self, manager):
        return {"train": self._generate_examples()}
    def _generate_examples(self):
        for i in range(6):
            buffer = io.BytesIO()
            Image.fromarray(np.full((8, 9, 3), i, np.uint8)).save(buffer, "PNG")
            yield i, {"photo": buffer.getvalue(), "label": i % 3}

Tiny(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
"""


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    pytest.importorskip("tensorflow_datasets")
    folder = tmp_path_factory.mktemp("tfds")
    subprocess.run([sys.executable, "-c", BUILDER, str(folder)], check=True, capture_output=True)
    return str(folder)


def tiny(tfds_dir, **changes):
    return TFDSConfig(**{"name": "tiny", "split": "train", "data_dir": tfds_dir, "image_key": "photo"} | changes)


def test_tfds_gives_encoded_bytes_without_tensorflow(tfds_dir):
    source = build_source(tiny(tfds_dir))
    samples = [pickle.loads(pickle.dumps(source))[i] for i in range(len(source))]
    pixels = [decode_image(sample["image"]) for sample in samples]
    assert sorted(int(image[0, 0, 0]) for image in pixels) == list(range(6))
    assert all(sample["label"] == image[0, 0, 0] % 3 for sample, image in zip(samples, pixels, strict=True))
    assert samples[4]["key"] == "tiny/train[4]"
    assert source.describe() == "TFDS tiny, split train: 6 images"
    assert len(build_source(tiny(tfds_dir, split="train[:50%]", label_key=None))) == 3
    assert build_source(tiny(tfds_dir, label_key=None)).read(1)[1] == 0
    assert "tensorflow" not in sys.modules


def test_tfds_order_is_that_of_its_shards_wherever_they_lie(tfds_dir, tmp_path):
    def order(folder=tfds_dir, **changes):
        return build_source(tiny(str(folder), **changes)).order_fingerprint()

    shutil.copytree(tfds_dir, tmp_path / "copy")
    (description,) = (tmp_path / "copy").glob("tiny/*/dataset_info.json")
    assert order() == order(tmp_path / "copy") == order(label_key=None)
    assert pickle.loads(pickle.dumps(build_source(tiny(tfds_dir)))).order_fingerprint() == order()
    splits = ["train", "train[:3]", "train[3:]", "train[1:4]", "train[:3]+train[3:]"]
    assert len({order(split=split) for split in splits}) == len(splits)
    assert order(split="train[:3]") == order(split="train[:50%]")
    content = json.loads(description.read_text())
    (split,) = content["splits"]
    for changed in ({"numBytes": "650"}, {"shardLengths": ["2", "4"]}):
        description.write_text(json.dumps(content | {"splits": [split | changed]}))
        assert order(tmp_path / "copy") != order()
    # Of the same records in another order, the number alone would say nothing.
    description.write_text(json.dumps(content | {"version": "1.0.1"}))
    description.parent.rename(description.parent.with_name("1.0.1"))
    assert order(tmp_path / "copy") != order()


def test_tfds_continues_its_own_order_and_that_of_earlier_versions(tfds_dir):
    def iterator(**changes):
        data = DataConfig(train=tiny(tfds_dir, **changes), image_size=8, workers=0)
        return build_train_iterator(data, batch_size_per_process=2, seed=0)

    whole, half = iterator(split="train[:3]"), iterator(split="train[3:]")
    next(whole)
    state = whole.get_state()
    with pytest.raises(DataError, match=r"the checkpoint has source_order \d+, this run has \d+"):
        half.set_state(state)
    del state["source_order"]
    half.set_state(state)
    assert half.position == 2
    for opened in (whole, half):
        opened.close()


def test_a_damaged_record_is_an_image_that_cannot_be_read(tfds_dir, monkeypatch):
    class Damaged:
        def __len__(self):
            return 6

        def __getitem__(self, index):
            raise RuntimeError("bad chunk")

    source = build_source(tiny(tfds_dir))
    monkeypatch.setattr(source, "_records", Damaged())
    data = DataConfig(train=tiny(tfds_dir), image_size=8)
    with pytest.raises(ImageDecodeError, match=r"tiny/train\[2\]: damaged record: RuntimeError: bad chunk"):
        SampleLoader(source, data).resized(2)


def test_tfds_errors(tfds_dir):
    with pytest.raises(DataError, match=r"has no split 'test' .*; it has train"):
        build_source(tiny(tfds_dir, split="test"))
    with pytest.raises(DataError, match=r"image_key is 'image', but .* tiny has the features label, photo"):
        build_source(tiny(tfds_dir, image_key="image"))
    with pytest.raises(DataError, match=r"label_key is 'class', but"):
        build_source(tiny(tfds_dir, label_key="class"))
    with pytest.raises(DataError, match=r"cannot open the TFDS data set tinny: .*\nPrepare it once") as caught:
        build_source(tiny(tfds_dir, name="tinny"))
    assert 'file_format="array_record").download_and_prepare()' in str(caught.value)
    with pytest.raises(DataError, match=r"TFDS data set cifar10 is not prepared: found nothing at .*cifar10"):
        build_source(tiny(tfds_dir, name="cifar10"))


def test_tfds_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(DataError, match=r"tensorflow-datasets, which is not installed: pip install 'voken\[data\]'"):
        build_source(TFDSConfig(name="tiny", split="train"))
