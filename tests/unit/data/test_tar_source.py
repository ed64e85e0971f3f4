"""Training from tars: every kept sample once per epoch in one global order, mixing, resuming, and tars that changed."""

import itertools
import json
import os
import pickle
import shutil

import fsspec
import numpy as np
import pytest

from tests.support.tar_sets import encoded, numbers, write_set, write_tar
from voken_common.config.loading import ConfigError, validate
from voken_common.config.schema.data import DataConfig, ImageFolderConfig, TarConfig, TarSetConfig
from voken_common.data.errors import DataError
from voken_common.data.pipeline import build_train_iterator, build_validation_batches
from voken_common.data.sources.build import build_source
from voken_common.data.storage import files as storage
from voken_common.data.tar import prepare
from voken_common.data.tar.index import TarIndex

COUNTS = (9, 4, 12, 1, 6)


def prepared(folder, out, *options):
    assert prepare.main([str(folder), "--output", str(out), "--workers", "0", *options]) == 0
    return str(out / f"{folder.name}.index")


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    """Five tars with 37 images, of which 3 are damaged, and a filter-keys file that names 2 more: 32 are left."""
    root = tmp_path_factory.mktemp("sets")
    folder = write_set(root / "five", COUNTS)
    number = sum(COUNTS)
    members = [(f"{number + i:05}.png", encoded(number + i)) for i in range(3)]
    members[1:1] = [(f"bad{i}.png", b"junk") for i in range(3)]
    write_tar(folder / "webdataset" / "00003.tar", members)
    # As substrings these would also leave out 00020 and 000021.
    keys = {"00000.tar": ["00002"], "/elsewhere/00002.tar": ["00021.png", "0001"], "00004.tar": ["00002.png"]}
    (root / "keys.json").write_text(json.dumps(keys))
    left = set(range(sum(COUNTS) + 3)) - {25} - {2, 21}
    return prepared(folder, root), str(root / "keys.json"), left


def config(*sets, **changes):
    return DataConfig(**{"train": TarConfig(sets=sets), "image_size": 8, "workers": 0, "max_bad_fraction": 0} | changes)


def take(data, steps, *, batch_size, state=None, **options):
    iterator = build_train_iterator(data, batch_size_per_process=batch_size, seed=5, **options)
    if state is not None:
        iterator.set_state(json.loads(json.dumps(state)))
    found = [numbers(batch["image"]) for batch in itertools.islice(iterator, steps)]
    state = iterator.get_state()
    iterator.close()
    return found, state


def run(data, steps, count, *, batch_size=6, state=None):
    """The global order that `count` processes together train on, and the state of each at the end."""
    results = [
        take(data, steps, batch_size=batch_size // count, state=state, process_index=i, process_count=count)
        for i in range(count)
    ]
    assert all(state == results[0][1] for _, state in results)
    order = [n for step in zip(*(found for found, _ in results), strict=True) for part in step for n in part]
    return order, results[0][1]


def test_every_kept_sample_once_per_epoch_in_one_order_on_1_2_and_3_processes_with_a_restart(five):
    index, keys, left = five
    data = config(TarSetConfig(index=index, filter_keys=keys))
    length = len(left)
    steps = 3 * length // 6
    whole, _ = run(data, steps, 1)
    assert length * 3 == len(whole)
    epochs = [whole[i * length : (i + 1) * length] for i in range(3)]
    assert all(sorted(epoch) == sorted(left) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    for count in (1, 2, 3):
        assert run(data, steps, count)[0] == whole
        before, state = run(data, 7, count)
        assert state["position"] == 42
        for other in {1, 2, 3} - {count}:
            assert before + run(data, steps - 7, other, state=state)[0] == whole
    # Another batch size, too, from the middle of an epoch on.
    assert run(data, 10, 1, batch_size=3, state=state)[0] == whole[42:72]


@pytest.mark.slow
def test_worker_processes_read_the_same(five):
    index, keys, _ = five
    sets = TarSetConfig(index=index, filter_keys=keys)
    assert take(config(sets, workers=2), 10, batch_size=5) == take(config(sets), 10, batch_size=5)


def test_filter_keys_are_matched_exactly(five):
    index, keys, left = five
    source = build_source(TarConfig(sets=(TarSetConfig(index=index, filter_keys=keys),)))
    assert len(source) == len(left)
    names = [source.key(i).rsplit(":", 1)[1] for i in range(len(source))]
    assert "00002.png" not in names
    assert {"00001.png", "00020.png", "00012.png"} <= set(names)
    assert source.key(0) == f"{os.path.dirname(index)}/five/webdataset/00000.tar:00000.png"
    assert source.describe() == f"5 tars of 1 sets: {len(left)} images (five.index {len(left)})"
    assert pickle.loads(pickle.dumps(source)).read(20) == source.read(20)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot read the filter-keys file"),
        ("[]", "expected a JSON object of lists"),
        ('{"a.tar": [1]}', "expected a JSON object of lists"),
        (None, "cannot read the filter-keys file"),
        (
            '{"7.tar": ["00001"]}',
            r"names the tars 7\.tar, of which the index .*five\.index has none \(it has 00000\.tar, ",
        ),
    ],
)
def test_filter_keys_files_that_are_none(five, tmp_path, content, message):
    if content is not None:
        (tmp_path / "keys.json").write_text(content)
    with pytest.raises(DataError, match=message):
        build_source(TarConfig(sets=(TarSetConfig(index=five[0], filter_keys=str(tmp_path / "keys.json")),)))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A set of 30 images numbered from 0, and one of 10 from 100."""
    root = tmp_path_factory.mktemp("two")
    large, small = write_set(root / "large", (20, 10)), write_set(root / "small", (3, 7), first=100, extension="webp")
    return prepared(large, root), prepared(small, root)


def test_sets_without_weights_are_shuffled_as_one(two):
    data = config(*(TarSetConfig(index=index) for index in two))
    order, _ = run(data, 20, 1, batch_size=4)
    for epoch in (order[:40], order[40:]):
        assert sorted(epoch) == [*range(30), *range(100, 110)]
    places = [i for i, number in enumerate(order[:40]) if number >= 100]
    assert places[0] < 12 < 28 < places[-1]


def test_weights_mix_the_sets_and_keep_the_epochs_of_each(two):
    data = config(TarSetConfig(index=two[0], weight=0.6), TarSetConfig(index=two[1], weight=0.4))
    order, _ = run(data, 50, 1, batch_size=3)
    small, large = ([n for n in order if (n >= 100) == wanted] for wanted in (True, False))
    assert (len(small), len(large)) == (60, 90)
    assert all(sorted(small[i : i + 10]) == list(range(100, 110)) for i in range(0, 60, 10))
    assert all(sorted(large[i : i + 30]) == list(range(30)) for i in range(0, 90, 30))
    assert small[:10] != small[10:20]
    assert all(abs(sum(n >= 100 for n in order[:k]) - 0.4 * k) <= 1 for k in range(1, 150))
    before, state = run(data, 11, 3, batch_size=3)
    assert before + run(data, 39, 1, batch_size=3, state=state)[0] == order
    lengths = [len(take(data, None, batch_size=4, epochs=2, process_index=i, process_count=2)[0]) for i in range(2)]
    assert lengths == [10, 10]


def test_other_weights_do_not_continue_an_order(two):
    _, state = run(config(*(TarSetConfig(index=index, weight=1.0) for index in two)), 2, 1)
    other = config(TarSetConfig(index=two[0], weight=2.0), TarSetConfig(index=two[1], weight=1.0))
    with pytest.raises(DataError, match=r"the checkpoint has source_order \d+, this run has \d+; restore"):
        run(other, 2, 1, state=state)
    with pytest.raises(DataError, match=r"the checkpoint has source_order None, this run has"):
        run(other, 2, 1, state={key: value for key, value in state.items() if key != "source_order"})


def test_other_images_do_not_continue_an_order_of_as_many(five, tmp_path):
    states = []
    for number, name in enumerate(("00001", "00003", "00003.png")):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps({"00000.tar": [name]}))
        data = config(TarSetConfig(index=five[0], filter_keys=str(path)))
        states.append(take(data, 1, batch_size=2)[1])
    assert states[0]["source_length"] == states[1]["source_length"]
    assert states[0]["source_order"] != states[1]["source_order"] == states[2]["source_order"]
    with pytest.raises(DataError, match=r"the checkpoint has source_order"):
        take(data, 1, batch_size=2, state=states[0])


def test_validation_reads_tars_too(two):
    data = config(*(TarSetConfig(index=index) for index in two))
    batches = list(build_validation_batches(data.model_copy(update={"validation": data.train}), batch_size=8))
    assert sorted(n for batch in batches for n in numbers(batch["image"])) == [*range(30), *range(100, 110)]


def test_crops_of_tars_are_central_unless_the_configuration_says_otherwise(two, tmp_path):
    assert config(TarSetConfig(index=two[0])).crop == "center"
    assert config(TarSetConfig(index=two[0]), crop="random").crop == "random"
    assert DataConfig(train=ImageFolderConfig(path="x"), image_size=8).crop == "random"


def test_configuration_errors(two):
    with pytest.raises(ValueError, match="some sets have a weight and some have none"):
        TarConfig(sets=(TarSetConfig(index="a", weight=1.0), TarSetConfig(index="b")))
    with pytest.raises(ValueError, match="at least 1 item"):
        TarConfig(sets=())
    data = {"train": {"kind": "tar", "sets": [{"indx": "a"}]}, "image_size": 8}
    with pytest.raises(
        ConfigError, match=r"unknown key data\.train\.sets\.0\.indx; did you mean data\.train\.sets\.0\.ind"
    ) as caught:
        validate({"data": data}, origin="run.yaml")
    # The default of data.crop follows from data.train.
    assert "data.crop" not in str(caught.value)


@pytest.fixture
def changing(tmp_path):
    index = prepared(write_set(tmp_path / "set", (4, 3)), tmp_path)
    return index, tmp_path / "set" / "webdataset" / "00001.tar"


def opened(index, location=None):
    return build_source(TarConfig(sets=(TarSetConfig(index=index, location=location),)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tar: tar.write_bytes(tar.read_bytes()[:-512]), r"00001\.tar has \d+ bytes, had \d+"),
        (lambda tar: tar.write_bytes(tar.read_bytes().replace(b"00004.png", b"00009.png")), "begins with other bytes"),
        (lambda tar: tar.unlink(), r"00001\.tar is missing"),
        (lambda tar: shutil.rmtree(tar.parent), "no folder .*webdataset, where the tars are expected; if they moved"),
    ],
)
def test_tars_that_changed_are_found_out(changing, change, message):
    index, tar = changing
    before = tar.stat()
    change(tar)
    if tar.exists():
        os.utime(tar, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    with pytest.raises(DataError, match=message) as caught:
        opened(index)
    if "no folder" not in message:
        assert "voken_common.data.tar.prepare` on the set again" in str(caught.value)


def test_a_copy_with_another_time_and_place_is_the_same(changing, tmp_path):
    index, tar = changing
    shutil.move(tar.parent, tmp_path / "moved")
    os.utime(tmp_path / "moved" / tar.name, (1, 1))
    assert opened(index, str(tmp_path / "moved")).read(6) == (encoded(6), 0)


def test_a_tar_that_changes_under_a_run_stops_it(changing):
    index, tar = changing
    source = opened(index)
    data = tar.read_bytes()
    tar.write_bytes(data.replace(b"00005.png", b"00009.png"))
    assert source.read(4)[0] == encoded(4)
    with pytest.raises(
        DataError, match=r"00001\.tar changed since .*set\.index was written: '00005\.png' is not at byte"
    ):
        source.read(5)
    iterator = build_train_iterator(config(TarSetConfig(index=index)), batch_size_per_process=7, seed=0, source=source)
    with pytest.raises(DataError, match="changed since"):
        next(iterator)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], "damaged, or not an array file"),
        (lambda data: data[:-1], "bytes of arrays expected"),
        (lambda data: b"", "no header"),
        (lambda data: b"PK" + data[2:], "damaged, or not an array file"),
        (lambda data: data.replace(b'\\"version\\": 1', b'\\"version\\": 9'), "has version 9, expected 1"),
        (lambda data: data.replace(b'"first"', b'"f_rst"'), "'first'"),
    ],
)
def test_a_damaged_index_is_refused(changing, damage, message):
    index, _ = changing
    with open(index, "rb") as file:
        data = file.read()
    with open(index, "wb") as file:
        file.write(damage(data))
    with pytest.raises(DataError, match=message) as caught:
        opened(index)
    assert "prepare` on the set again" in str(caught.value)


def test_what_is_no_index_says_which_file_is_meant(changing, tmp_path):
    for path in (changing[1], changing[0].replace(".index", ".samples.json")):
        with pytest.raises(DataError, match=r"damaged, or not .*; write it with .* and name FOLDER/SET\.index"):
            opened(str(path))


def test_the_place_of_tars_is_their_own_folder(changing, tmp_path):
    with pytest.raises(
        DataError,
        match=r"none of its tars \(00000\.tar, 00001\.tar\) is in .*/set, which holds no tars; .*SET/",
    ):
        opened(changing[0], str(tmp_path / "set"))


def test_a_missing_index_says_how_to_write_it(tmp_path):
    with pytest.raises(DataError, match=r"no tar index at .*x\.index: No such file .* write it with `python -m"):
        opened(str(tmp_path / "x.index"))


@pytest.fixture
def bucket(tmp_path):
    """The set of `two`, in an object store."""
    folder = write_set(tmp_path / "set", (5, 4))
    system = fsspec.filesystem("memory")
    for tar in (folder / "webdataset").iterdir():
        system.pipe_file(f"/bucket/set/webdataset/{tar.name}", tar.read_bytes())
    yield system
    system.store.clear()


def test_tars_in_an_object_store(bucket, tmp_path):
    assert prepare.main(["memory://bucket/set", "--output", str(tmp_path / "out"), "--workers", "0"]) == 0
    index = str(tmp_path / "out" / "set.index")
    url = "memory://bucket/set/webdataset"
    with pytest.raises(DataError, match="says that its tars are at memory://bucket/set/webdataset, which is not below"):
        TarIndex(index)
    assert sorted(run(config(TarSetConfig(index=index, location=url)), 3, 1, batch_size=3)[0]) == list(range(9))
    local = config(TarSetConfig(index=index, location=str(tmp_path / "set" / "webdataset")))
    assert run(local, 6, 1)[0] == run(config(TarSetConfig(index=index, location=url), read_threads=3), 6, 1)[0]
    file = config(TarSetConfig(index=index, location=f"file://{tmp_path}/set/webdataset"))
    assert run(local, 6, 1)[0] == run(file, 6, 1)[0]
    source = opened(index, url)
    assert source.key(0) == "memory://bucket/set/webdataset/00000.tar:00000.png"
    bucket.pipe_file("/bucket/set/webdataset/00001.tar", b"short")
    with pytest.raises(DataError, match=r"memory://bucket/set/webdataset/00001.tar has 5 bytes, had"):
        opened(index, url)
    with pytest.raises(DataError, match="'00008.png' is not at byte"):
        source.read(8)
    bucket.rm("/bucket/set/webdataset/00000.tar")
    iterator = build_train_iterator(
        config(TarSetConfig(index=index, location=url)), batch_size_per_process=1, seed=0, source=source
    )
    with pytest.raises(DataError, match=r"allows 0:\n  memory://.*: cannot be read"):
        list(itertools.islice(iterator, 9))


def test_whatever_a_store_raises_is_an_error_of_the_system(bucket, tmp_path, monkeypatch):
    assert prepare.main(["memory://bucket/set", "--output", str(tmp_path / "out"), "--workers", "0"]) == 0
    source = opened(str(tmp_path / "out" / "set.index"), "memory://bucket/set/webdataset")

    def fail(*_, **__):
        raise RuntimeError("the connection broke")

    monkeypatch.setattr(type(bucket), "cat_file", fail)
    with pytest.raises(OSError, match=r"RuntimeError: the connection broke: 'memory://.*00000\.tar'"):
        source.read(0)


def test_stores_that_fsspec_does_not_know(tmp_path):
    with pytest.raises(DataError, match="nothing://x/y is not opened: expected one URL that begins with abfs, "):
        prepare.find_set("nothing://x/y")


def test_open_files_are_few_and_shared_by_threads(tmp_path):
    for i in range(200):
        (tmp_path / f"{i}").write_bytes(bytes([i]) * 3)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    for _ in range(2):
        for i in range(200):
            assert storage.read_range(str(tmp_path / f"{i}"), 1, 5) == bytes([i]) * 2
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) <= before + 128
    with pytest.raises(FileNotFoundError):
        storage.read_range(str(tmp_path / "none"), 0, 1)


def test_an_empty_set_and_all_filtered(five, tmp_path):
    index, _, _ = five
    names = {f"{i:05}.tar": [f"{n:05}" for n in range(40)] for i in range(5)}
    (tmp_path / "all.json").write_text(json.dumps(names))
    with pytest.raises(DataError, match=r"no images are left of the set .*five\.index"):
        build_source(TarConfig(sets=(TarSetConfig(index=index, filter_keys=str(tmp_path / "all.json")),)))
    assert np.isfinite(len(opened(index)))
