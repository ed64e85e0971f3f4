"""ImageNet's archives read in place, and lists of files that are kept between runs."""

import io
import logging
import os
import pickle
import tarfile
import time

import numpy as np
import pytest

from tests.support.tar_sets import encoded, numbers, write_tar
from voken_common.config.schema.data import DataConfig, ImageNetTarConfig
from voken_common.data.errors import DataError
from voken_common.data.pipeline import build_train_iterator
from voken_common.data.sources import imagenet_tar, listing
from voken_common.data.sources.build import build_source
from voken_common.data.sources.folder import ImageFolder

CLASSES = {
    "n02": ["n02_9.JPEG", "n02_10.JPEG"],
    "n01": ["n01_1.JPEG"],
    "n06596364": ["n06596364_9591.JPEG", "n06596364_5.JPEG"],
}


def inner_tar(names):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name in names:
            data = encoded(sum(map(ord, name)), "png")
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


@pytest.fixture
def archive(tmp_path):
    return write_tar(tmp_path / "train.tar", [(f"{name}.tar", inner_tar(names)) for name, names in CLASSES.items()])


def test_the_train_archive_is_read_in_place(archive):
    source = build_source(ImageNetTarConfig(path=str(archive)))
    names = ["n01_1.JPEG", "n02_10.JPEG", "n02_9.JPEG", "n06596364_5.JPEG"]
    assert [source.key(i) for i in range(len(source))] == [f"{archive}:{n.split('_')[0]}.tar/{n}" for n in names]
    assert [source.read(i) for i in range(4)] == [
        (encoded(sum(map(ord, name))), label) for name, label in zip(names, (0, 1, 1, 2))
    ]
    assert source.classes == ("n01", "n02", "n06596364")
    assert source.describe() == f"ImageNet archive {archive}: 4 images, 3 classes"
    assert pickle.loads(pickle.dumps(source)).read(2) == source.read(2)
    data = DataConfig(train=ImageNetTarConfig(path=str(archive)), image_size=8, workers=0)
    iterator = build_train_iterator(data, batch_size_per_process=4, seed=0)
    batch = next(iterator)
    iterator.close()
    assert sorted(batch["label"]) == [0, 1, 1, 2]
    assert sorted(numbers(batch["image"])) == sorted(sum(map(ord, name)) for name in names)


def test_the_order_of_an_archive_is_that_of_its_folder(archive, tmp_path):
    for name, files in CLASSES.items():
        (tmp_path / "train" / name).mkdir(parents=True)
        for file in files:
            (tmp_path / "train" / name / file).touch()
    whole = build_source(ImageNetTarConfig(path=str(archive), exclude=()))
    assert whole.order_fingerprint() == ImageFolder(str(tmp_path / "train")).order_fingerprint()
    assert whole.order_fingerprint() != build_source(ImageNetTarConfig(path=str(archive))).order_fingerprint()


def test_the_image_that_training_skips_is_configurable(archive):
    assert len(build_source(ImageNetTarConfig(path=str(archive), exclude=()))) == 5
    with pytest.raises(DataError, match="all its images are excluded"):
        build_source(
            ImageNetTarConfig(path=str(archive), exclude=tuple(n for names in CLASSES.values() for n in names))
        )


def test_the_validation_archive_is_flat(tmp_path):
    path = write_tar(tmp_path / "val.tar", [(f"val_{i}.JPEG", encoded(i)) for i in (2, 1)] + [("readme.txt", b"x")])
    source = build_source(ImageNetTarConfig(path=str(path)))
    assert [source.read(i) for i in range(len(source))] == [(encoded(1), 0), (encoded(2), 0)]
    assert (source.classes, source.key(0)) == ((), f"{path}:val_1.JPEG")
    assert source.describe() == f"ImageNet archive {path}: 2 images, flat"


def test_positions_are_found_once_and_anew_for_another_archive(archive, monkeypatch):
    walks = []
    walk = imagenet_tar.walk_tar
    monkeypatch.setattr(imagenet_tar, "walk_tar", lambda *args: walks.append(1) or walk(*args))
    first = build_source(ImageNetTarConfig(path=str(archive)))
    assert (len(walks), (archive.parent / "train.tar.index").exists()) == (4, True)
    assert build_source(ImageNetTarConfig(path=str(archive))).key(2) == first.key(2)
    assert len(walks) == 4
    write_tar(archive, [("n01.tar", inner_tar(["n01_7.JPEG"]))])
    assert len(build_source(ImageNetTarConfig(path=str(archive)))) == 1
    assert len(walks) == 6
    with pytest.raises(DataError, match=r"train\.tar changed while it was in use: .*n02_10\.JPEG is not at"):
        first.read(1)
    (archive.parent / "train.tar.index").write_bytes(b"junk" * 5)
    assert len(build_source(ImageNetTarConfig(path=str(archive)))) == 1
    assert len(walks) == 8


def test_a_place_for_the_positions_that_cannot_be_written_is_a_warning(archive, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    config = ImageNetTarConfig(path=str(archive), index=str(tmp_path / "file" / "x.index"))
    with caplog.at_level(logging.WARNING, logger="voken.data"):
        assert len(build_source(config)) == 4
    assert "cannot keep the positions in" in caplog.text
    assert "name another place with data.train.index" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda data: data[:3000], r"member 'n01\.tar' at byte|member 'n02\.tar' at byte 0 needs"),
        (lambda data: data.replace(b"ustar", b"xxxxx"), "no tar header at byte 0; it is not a tar"),
        (lambda data: data[:600] + b"?" * 400 + data[1000:], r"n02\.tar in it: no tar header at byte 0"),
        (lambda data: None, "no ImageNet archive at .*train.tar: No such file"),
    ],
)
def test_archives_that_are_damaged(archive, content, message):
    data = content(archive.read_bytes())
    archive.unlink() if data is None else archive.write_bytes(data)
    with pytest.raises(DataError, match=message):
        build_source(ImageNetTarConfig(path=str(archive)))


def test_archives_of_something_else(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("a.txt", b"x")])
    with pytest.raises(DataError, match=r"no images in .*a\.tar\. Expected\n  ILSVRC2012_img_train\.tar"):
        build_source(ImageNetTarConfig(path=str(path)))
    path = write_tar(tmp_path / "b.tar", [("a.png", encoded(1)), ("n01.tar", inner_tar(["n01_1.JPEG"]))])
    with pytest.raises(DataError, match=r"b\.tar: it holds both images and tars"):
        build_source(ImageNetTarConfig(path=str(path)))
    with pytest.raises(DataError, match=r"name a file for the positions of its images: data\.train\.index"):
        build_source(ImageNetTarConfig(path="memory://x/a.tar"))


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    for name in ("a/1.png", "a/2.png", "b/deep/3.png", "b/4.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encoded(1))
    return root


def age(root):
    """Folders as they are when nothing changed for a minute."""
    for parent, _, _ in os.walk(root):
        os.utime(parent, ns=(0, time.time_ns() - 60 * 10**9))


def keys(root, cache, **options):
    source = ImageFolder(str(root), list_cache=str(cache), **options)
    return [os.path.relpath(source.key(i), root) for i in range(len(source))], source.read(0)[1], source.classes


def test_a_kept_list_saves_the_walk_until_a_folder_changes(folder, tmp_path, monkeypatch):
    cache = tmp_path / "kept.list"
    age(folder)
    walks = []
    walk = os.walk
    monkeypatch.setattr(listing.os, "walk", lambda *args, **names: walks.append(1) or walk(*args, **names))
    expected = ["a/1.png", "a/2.png", "b/4.png", "b/deep/3.png"]
    assert keys(folder, cache) == (expected, 0, ("a", "b"))
    assert len(walks) == 2
    assert keys(folder, cache) == (expected, 0, ("a", "b"))
    assert keys(folder, cache, exclude=("2.png",))[0] == ["a/1.png", "b/4.png", "b/deep/3.png"]
    assert len(walks) == 2
    changes = [
        lambda: (folder / "b" / "deep" / "5.png").write_bytes(encoded(1)),
        lambda: (folder / "a" / "1.png").rename(folder / "a" / "0.png"),
        lambda: (folder / "b" / "4.png").unlink(),
        lambda: (folder / "b" / "new").mkdir(),
    ]
    for change in changes:
        change()
        assert keys(folder, cache) == keys(folder, tmp_path / "other.list")
        (tmp_path / "other.list").unlink(missing_ok=True)
        age(folder)
        assert keys(folder, cache) == keys(folder, cache)
    assert keys(folder, cache)[0] == ["a/0.png", "a/2.png", "b/deep/3.png", "b/deep/5.png"]


def test_a_list_is_not_kept_while_folders_change(folder, tmp_path):
    keys(folder, tmp_path / "kept.list")
    assert not (tmp_path / "kept.list").exists()


def test_a_kept_list_of_another_folder_or_damaged_is_made_anew(folder, tmp_path, caplog):
    cache = tmp_path / "kept.list"
    age(folder)
    expected = keys(folder, cache)
    assert keys(folder / "a", cache)[0] == ["1.png", "2.png"]
    assert keys(folder, cache) == expected
    data = cache.read_bytes()
    for damaged in (data[: len(data) // 2], b"", data[:40] + b"junk" * 100, data[:-1]):
        cache.write_bytes(damaged)
        assert keys(folder, cache) == expected
        assert "is of no use" in caplog.text
        assert cache.read_bytes() == data
        caplog.clear()
    cache.write_bytes(b"somebody's notes")
    assert keys(folder, cache) == expected
    assert cache.read_bytes() == b"somebody's notes"
    (tmp_path / "file").write_text("")
    assert keys(folder, tmp_path / "file" / "kept.list") == expected
    assert "cannot keep the list of files" in caplog.text


def test_labels_come_back_from_a_kept_list(folder, tmp_path):
    age(folder)
    for _ in range(2):
        source = ImageFolder(str(folder), list_cache=str(tmp_path / "kept.list"))
        assert np.array_equal([source.read(i)[1] for i in range(4)], [0, 0, 1, 1])
