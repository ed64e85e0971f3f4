"""Order, sharding, resumption, static shapes and the policy for bad images."""

import itertools
import logging
import shutil
import threading
import time

import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

from voken_common.config.schema.data import DataConfig, ImageFolderConfig, SkimageConfig
from voken_common.data import pipeline, transforms
from voken_common.data.bad_images import BadImageLimit
from voken_common.data.decode import decode_image
from voken_common.data.errors import DataError, TooManyBadImagesError
from voken_common.data.pipeline import build_train_iterator, build_validation_batches, steps_per_epoch
from voken_common.data.sources.skimage import Photographs

COUNT = 23


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """23 images of noise; the label of image i is i."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        (root / f"{i:02}").mkdir()
        Image.fromarray(rng.integers(0, 256, (20, 26, 3), dtype=np.uint8)).save(root / f"{i:02}" / "image.png")
    return root


def config(folder, **changes):
    source = ImageFolderConfig(path=str(folder))
    fields = {"train": source, "validation": source, "image_size": 16, "workers": 0, "flip": True}
    return DataConfig(**fields | changes)


def take(data, steps, *, batch_size=5, seed=3, state=None, **options):
    iterator = build_train_iterator(data, batch_size_per_process=batch_size, seed=seed, **options)
    if state is not None:
        iterator.set_state(state)
    batches = list(itertools.islice(iterator, steps))
    state = iterator.get_state()
    iterator.close()
    return batches, state


def joined(batches, field="label"):
    return np.concatenate([batch[field] for batch in batches])


def assert_same(left, right):
    for field in ("image", "label"):
        np.testing.assert_array_equal(joined(left, field), joined(right, field))


def test_batches_have_static_shapes_and_range(folder):
    batch = take(config(folder), 1)[0][0]
    assert set(batch) == {"image", "label"}
    assert (batch["image"].shape, batch["image"].dtype) == ((5, 16, 16, 3), np.float32)
    assert (batch["label"].shape, batch["label"].dtype) == ((5,), np.int32)
    assert type(batch["image"]) is np.ndarray
    assert -1 <= batch["image"].min() < -0.5 < 0.5 < batch["image"].max() <= 1


def test_each_epoch_is_its_own_permutation(folder):
    labels = joined(take(config(folder), COUNT)[0])
    epochs = labels.reshape(5, COUNT)
    assert all(sorted(epoch) == list(range(COUNT)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5
    assert tuple(epochs[0]) != tuple(range(COUNT))


def test_the_order_and_the_crops_follow_from_the_seed(folder):
    first = take(config(folder), 6)[0]
    assert_same(first, take(config(folder), 6)[0])
    other = take(config(folder), 6, seed=4)[0]
    assert (joined(first) != joined(other)).any()


def test_random_crops_differ_between_epochs_and_centre_crops_do_not(folder):
    def views(data):
        batches = take(data, 2 * COUNT, batch_size=1)[0]
        return {
            label: [b["image"].tobytes() for b in batches if b["label"][0] == label] for label in range(COUNT)
        }.values()

    assert sum(a == b for a, b in views(config(folder, resize="none"))) < 4
    assert all(a == b for a, b in views(config(folder, crop="center", flip=False)))


@pytest.mark.parametrize("process_count", [2, 3])
def test_the_global_batches_do_not_depend_on_the_process_count(folder, process_count):
    whole = take(config(folder), 8, batch_size=6)[0]
    parts = [
        take(config(folder), 8, batch_size=6 // process_count, process_index=i, process_count=process_count)[0]
        for i in range(process_count)
    ]
    for step, batch in enumerate(whole):
        assert_same([part[step] for part in parts], [batch])


def test_resuming_in_the_middle_of_an_epoch_changes_nothing(folder):
    undisturbed = take(config(folder), 12)[0]
    before, state = take(config(folder), 7)
    order = state.pop("source_order")
    assert isinstance(order, int)
    assert state == {"version": 1, "position": 35, "seed": 3, "source_length": COUNT}
    # With and without the fingerprint of the files, which earlier versions did not save.
    for saved in (state, state | {"source_order": order}):
        assert_same(undisturbed, before + take(config(folder), 5, state=saved)[0])


def test_resuming_on_other_processes_with_another_batch_continues_the_order(folder):
    order = joined(take(config(folder), 12)[0])
    _, state = take(config(folder), 7)
    parts = [take(config(folder), 3, batch_size=4, process_index=i, process_count=2, state=state)[0] for i in range(2)]
    continued = np.concatenate([joined([a, b]) for a, b in zip(*parts, strict=True)])
    np.testing.assert_array_equal(continued, order[35:59])


def test_a_batch_that_is_ready_is_not_counted_before_it_is_taken(folder, monkeypatch):
    ready, convert = [], pipeline._as_floats
    monkeypatch.setattr(pipeline, "_as_floats", lambda batch: ready.append(1) or convert(batch))
    iterator = build_train_iterator(config(folder), batch_size_per_process=5, seed=3)
    first = next(iterator)
    until = time.monotonic() + 30
    while len(ready) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    assert len(ready) >= 2, "the next batch is made while this one is worked on"
    state = iterator.get_state()
    assert (iterator.position, state["position"]) == (5, 5)
    iterator.close()
    assert not [thread for thread in threading.enumerate() if "grain-thread-prefetch" in thread.name]
    assert_same([first, *take(config(folder), 3, state=state)[0]], take(config(folder), 4)[0])


class Placed(dict):
    """A batch that is on its way to a device."""


def test_a_batch_is_placed_ahead_in_a_thread_and_counted_when_it_is_taken(folder):
    threads = []

    def place(batch):
        threads.append(threading.current_thread())
        return Placed(batch | {"number": len(threads)})

    iterator = build_train_iterator(config(folder), batch_size_per_process=5, seed=3)
    iterator.place = place
    first = next(iterator)
    until = time.monotonic() + 30
    while len(threads) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    assert len(threads) >= 2, "the next batch is placed while this one is worked on"
    assert threading.current_thread() not in threads
    state = iterator.get_state()
    assert (iterator.position, state["position"]) == (5, 5)
    second = next(iterator)
    assert [type(batch) for batch in (first, second)] == [Placed] * 2
    assert [batch["number"] for batch in (first, second)] == [1, 2]
    assert "bad" not in first
    iterator.close()
    assert_same([first, *take(config(folder), 3, state=state)[0]], take(config(folder), 4)[0])
    assert_same([second], take(config(folder), 2)[0][1:])


def test_going_back_on_a_running_iterator(folder):
    iterator = build_train_iterator(config(folder), batch_size_per_process=4, seed=0)
    start, first = iterator.get_state(), [next(iterator) for _ in range(3)]
    iterator.set_state(start)
    assert_same(first, [next(iterator) for _ in range(3)])
    assert (iterator.position, iterator.epoch) == (12, 0)
    iterator.close()
    with pytest.raises(ValueError, match="closed iterator"):
        next(iterator)


def test_state_lives_in_an_orbax_checkpoint(folder, tmp_path):
    iterator = build_train_iterator(config(folder), batch_size_per_process=4, seed=0)
    for _ in range(3):
        next(iterator)
    with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
        manager.save(3, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(iterator)))
        manager.wait_until_finished()
        expected = [next(iterator) for _ in range(2)]
        fresh = build_train_iterator(config(folder), batch_size_per_process=4, seed=0)
        manager.restore(3, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(fresh)))
    assert_same(expected, [next(fresh) for _ in range(2)])
    iterator.close()
    fresh.close()


def test_state_of_another_run_is_refused(folder):
    iterator = build_train_iterator(config(folder), batch_size_per_process=4, seed=0)
    for change, found in (
        ({"seed": 7}, "seed 7, this run has 0"),
        ({"source_length": 9}, "source_length 9, this run has 23"),
        # As many files, but others.
        ({"source_order": 1}, r"source_order 1, this run has \d+"),
    ):
        with pytest.raises(DataError, match=f"cannot continue the data order: the checkpoint has {found}"):
            iterator.set_state(iterator.get_state() | change)


@pytest.mark.slow
def test_worker_processes_change_nothing_but_speed(folder):
    threads, state = take(config(folder), 9)
    workers, same_state = take(config(folder, workers=2), 9)
    assert state == same_state
    assert_same(threads, workers)
    assert type(workers[0]["image"]) is np.ndarray
    _, state = take(config(folder), 4)
    assert_same(threads[4:], take(config(folder, workers=2), 5, state=state)[0])


def test_finite_epochs_drop_the_incomplete_batch_on_every_process(folder):
    assert len(take(config(folder), None, batch_size=5, epochs=2)[0]) == 9
    lengths = [
        len(take(config(folder), None, batch_size=4, epochs=1, process_index=i, process_count=2)[0]) for i in range(2)
    ]
    assert lengths == [2, 2]
    with pytest.raises(DataError, match=r"1 epochs of 23 images do not fill one batch of 24; use a smaller batch"):
        build_train_iterator(config(folder), batch_size_per_process=24, seed=0, epochs=1)


def test_a_batch_may_be_larger_than_the_source(folder):
    labels = joined(take(config(folder), 2, batch_size=50)[0])
    assert np.bincount(labels, minlength=COUNT).min() == 4


def test_steps_per_epoch_counts_the_incomplete_batch(folder):
    assert steps_per_epoch(config(folder), 5) == 5
    assert steps_per_epoch(config(folder), 23) == 1


def test_process_index_is_checked(folder):
    with pytest.raises(ValueError, match="process_index 2 must lie between 0 and process_count - 1 = 1"):
        build_train_iterator(config(folder), batch_size_per_process=1, seed=0, process_index=2, process_count=2)


def test_reduced_jpeg_decoding_is_an_option_and_close(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(4):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        coarse.resize((80, 64), Image.Resampling.BICUBIC).save(tmp_path / f"{i}.jpg", quality=95)
    plain, reduced = (take(config(tmp_path, reduced_jpeg_decode=on), 2, batch_size=4)[0] for on in (False, True))
    difference = np.abs(joined(plain, "image") - joined(reduced, "image"))
    assert 0 < difference.mean() < 0.02
    untouched = (
        take(config(tmp_path, reduced_jpeg_decode=on, resize="none"), 2, batch_size=4)[0] for on in (False, True)
    )
    assert_same(*untouched)


@pytest.mark.parametrize("resize", ["pil", "cv2", "none"])
def test_resizing_the_crop_only_is_an_option_and_close(tmp_path, resize):
    rng = np.random.default_rng(0)
    # Two are smaller than the crop, so that `none` enlarges them.
    for i, height in enumerate((77, 79, 140, 141)):
        Image.fromarray(rng.integers(0, 256, (height, 200, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    ways = (config(tmp_path, resize=resize, resize_crop_only=on, flip=False, image_size=128) for on in (False, True))
    plain, cut = (take(way, 3, batch_size=4)[0] for way in ways)
    difference = np.abs(joined(plain, "image") - joined(cut, "image")) * 127.5
    assert difference.max() < 1.01
    assert (difference > 0).mean() < 0.02
    assert (difference > 0).any() == (resize != "cv2")
    decoded = (decode_image(tmp_path / f"{i}.png") for i in range(4))
    whole = [transforms.resize_short_side(image, 128, resize) for image in decoded]
    for image in (joined(plain, "image") * 127.5 + 127.5).round().astype(np.uint8):
        assert any(
            (image == other[top : top + 128, left : left + 128]).all()
            for other in whole
            for top in range(other.shape[0] - 128 + 1)
            for left in range(other.shape[1] - 128 + 1)
        ), "with the option off a crop is one of the resized image"


def test_resizing_the_crop_only_leaves_nothing_to_cache(folder):
    with pytest.raises(ValueError, match="resize_crop_only"):
        config(folder, cache=True, resize_crop_only=True)


def test_cache_gives_the_same_and_reads_once(folder, monkeypatch):
    plain = take(config(folder), 10)[0]
    iterator = build_train_iterator(config(folder, cache=True), batch_size_per_process=5, seed=3)
    reads = []
    # On this source alone: threads of the iterator before may still be reading ahead.
    read = iterator.source.read
    monkeypatch.setattr(iterator.source, "read", lambda i: reads.append(i) or read(i))
    cached = [next(iterator) for _ in range(10)]
    iterator.close()
    assert_same(plain, cached)
    assert sorted(reads) == list(range(COUNT))


def test_validation_covers_every_image_once_with_a_mask(folder):
    batches = build_validation_batches(config(folder), batch_size=5)
    assert (len(batches), batches.num_images) == (5, COUNT)
    for _ in range(2):
        seen = list(batches)
        assert all(batch["image"].shape == (5, 16, 16, 3) for batch in seen)
        mask = joined(seen, "mask")
        assert mask.dtype == np.float32
        assert sorted(joined(seen)[mask == 1]) == list(range(COUNT))
        assert mask.sum() == COUNT


def test_validation_is_the_reference_preprocessing(folder):
    batch = next(iter(build_validation_batches(config(folder, resize="cv2"), batch_size=5)))
    for image, label in zip(batch["image"], batch["label"], strict=True):
        pixels = np.asarray(Image.open(folder / f"{label:02}" / "image.png"))
        np.testing.assert_array_equal(image, transforms.preprocess(pixels, 16, "cv2"))


@pytest.mark.parametrize("max_images", [None, 9, 2])
def test_validation_shards_agree_with_one_process(folder, max_images):
    whole = build_validation_batches(config(folder), batch_size=8, max_images=max_images)
    parts = [
        build_validation_batches(config(folder), batch_size=4, max_images=max_images, process_index=i, process_count=2)
        for i in range(2)
    ]
    assert {len(part) for part in parts} == {len(whole)}
    for batch, *shards in zip(whole, *parts, strict=True):
        for field in ("image", "label", "mask"):
            np.testing.assert_array_equal(joined(shards, field), batch[field])
    assert joined(list(whole), "mask").sum() == (COUNT if max_images is None else max_images)


def test_validation_needs_a_source(folder):
    with pytest.raises(DataError, match=r"data\.validation is not set: name a source there"):
        build_validation_batches(config(folder, validation=None), batch_size=2)


@pytest.mark.parametrize("resize", ["none", "pil"])
def test_held_out_crops_are_fixed_and_inside_their_region(resize):
    held_out = SkimageConfig(region="held_out", crops=24)
    data = DataConfig(
        train=SkimageConfig(region="train", crops=64), validation=held_out, image_size=32, resize=resize, workers=0
    )
    first, second = (list(build_validation_batches(data, batch_size=8)) for _ in range(2))
    assert_same(first, second)
    assert all(sorted(batch["label"]) == list(range(8)) for batch in first)
    assert len({image.tobytes() for image in joined(first, "image")}) == 24
    if resize == "none":
        region = transforms.to_float(Photographs("held_out").read(1)[0])
        windows = np.lib.stride_tricks.sliding_window_view(region, (32, 32, 3))[:, :, 0]
        for batch in first:
            assert (windows == batch["image"][1]).all(axis=(2, 3, 4)).any()


@pytest.fixture
def damaged(tmp_path):
    """40 images, of which 5, 6 and 30 do not decode."""
    for i in range(40):
        Image.new("RGB", (20, 20), (i, 0, 0)).save(tmp_path / f"{i:02}.png")
    for i in (5, 6):
        (tmp_path / f"{i:02}.png").write_bytes(b"junk")
    data = (tmp_path / "30.png").read_bytes()
    (tmp_path / "30.png").write_bytes(data[: len(data) - 25])
    return tmp_path


def values(batches):
    return np.rint((joined(batches, "image")[:, 0, 0, 0] + 1) * 127.5).astype(int)


def test_bad_images_are_reported_once_and_replaced_by_the_next_good_one(damaged, caplog):
    data = config(damaged, max_bad_fraction=0.1, flip=False)
    with caplog.at_level(logging.WARNING, logger="voken.data"):
        batches = take(data, 8, batch_size=10)[0]
    expected = sorted([*(set(range(40)) - {5, 6, 30}), 7, 7, 31])
    for epoch in range(2):
        assert sorted(values(batches[4 * epoch : 4 * epoch + 4])) == expected
    messages = sorted(record.getMessage() for record in caplog.records)
    assert len(messages) == 3
    assert messages[0].startswith(f"{damaged}/05.png: not an image in a known format; the next good image takes its")
    assert "/30.png: " in messages[2]
    assert any("(bad image 3, 4 allowed)" in message for message in messages)


def test_too_many_bad_images_stop_the_run(damaged):
    data = config(damaged, max_bad_fraction=0.05)
    iterator = build_train_iterator(data, batch_size_per_process=10, seed=0)
    with pytest.raises(TooManyBadImagesError) as caught:
        list(itertools.islice(iterator, 8))
    message = str(caught.value)
    assert "found 3 of 40 images that cannot be decoded; data.max_bad_fraction 0.05 allows 2:" in message
    assert all(f"{damaged}/{name}.png: " in message for name in ("05", "06", "30"))
    assert "Repair or remove these files" in message
    assert "or raise data.max_bad_fraction" in message


@pytest.mark.slow
def test_bad_images_reach_the_main_process_from_workers(damaged):
    iterator = build_train_iterator(config(damaged, max_bad_fraction=0.1, workers=1), batch_size_per_process=10, seed=0)
    list(itertools.islice(iterator, 4))
    assert iterator.bad_images == 3
    iterator.close()
    iterator = build_train_iterator(config(damaged, max_bad_fraction=0.0, workers=1), batch_size_per_process=10, seed=0)
    with pytest.raises(TooManyBadImagesError, match=r"found 1 of 40 images .* allows 0:\n  .*\.png: "):
        list(itertools.islice(iterator, 4))


def test_bad_images_are_masked_in_validation(damaged, caplog):
    batches = build_validation_batches(config(damaged, max_bad_fraction=0.1), batch_size=8)
    seen = list(batches)
    assert joined(seen, "mask").sum() == 37
    assert "30.png" in caplog.text
    assert "left out of the validation (bad image 3, 4 allowed)" in caplog.text
    with pytest.raises(TooManyBadImagesError, match="allows 1"):
        list(build_validation_batches(config(damaged, max_bad_fraction=0.04), batch_size=8))


def test_files_that_vanish_and_lines_of_pixels_are_bad_images(tmp_path, caplog):
    for i in range(4):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.png")
    Image.new("RGB", (4000, 1)).save(tmp_path / "line.png")
    data = config(tmp_path, max_bad_fraction=0.5)
    iterator = build_train_iterator(data, batch_size_per_process=5, seed=0)
    (tmp_path / "2.png").unlink()
    next(iterator)
    iterator.close()
    assert f"{tmp_path}/2.png: cannot be read: No such file or directory" in caplog.text
    assert f"{tmp_path}/line.png: found 1x4000 pixels, expected sides within a ratio of 256" in caplog.text


@pytest.mark.parametrize(
    "length, fraction, allowed",
    [(100, 0.29, 29), (999, 0.001, 1), (61, 0.001, 1), (2000, 0.001, 2), (7, 0.0, 0), (1, 0.5, 0)],
)
def test_the_limit_is_a_whole_number_of_images(length, fraction, allowed):
    assert BadImageLimit(length, fraction).allowed == allowed


def test_grown_data_go_on_where_that_is_allowed(folder, tmp_path, caplog):
    before = build_train_iterator(config(folder), batch_size_per_process=4, seed=0)
    for _ in range(2):
        next(before)
    state = before.get_state()
    before.close()
    grown = shutil.copytree(folder, tmp_path / "grown")
    some = next(grown.rglob("*.png"))
    shutil.copy(some, some.with_name("zz_new.png"))
    after = build_train_iterator(config(grown), batch_size_per_process=4, seed=0)
    with pytest.raises(DataError, match=r"source_length 23, this run has 24;.*--allow data goes on"):
        after.set_state(state)
    after.allow_changed_data = True
    with pytest.raises(DataError, match="the checkpoint has seed 1, this run has 0"):
        after.set_state(state | {"seed": 1})
    after.set_state(state)
    assert after.position == 0
    assert "source_length was 23, is 24" in caplog.text
    after.close()
    same = build_train_iterator(config(folder), batch_size_per_process=4, seed=0)
    same.allow_changed_data = True
    same.set_state(state)
    assert same.position == 8, "data that did not change go on where they were"
    same.close()
